//! What an operator sets: environment variables, because a VMM has no options for us. They are named as the options of hostblobd, and mean
//! the same.

use std::str::FromStr;

use hostblob_allocator::Config;
use hostblob_allocator::provider::{Choice, Options};
use hostblob_allocator::text::parse_size;
use hostblob_allocator::window::Warmth;
use hostblob_protocol::DEFAULT_CAPSET_ID;

use crate::error::{Error, Result};

/// Capset ids that virtio-gpu can name.
const CAPSET_IDS: std::ops::Range<u32> = 1..64;

/// All of it.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) provider: Choice,
    pub(crate) options: Options,
    pub(crate) limits: Config,
    pub(crate) capset_id: u32,
}

impl Settings {
    /// From the environment of the process.
    pub(crate) fn from_environment() -> Result<Self> {
        Self::new(|variable| std::env::var(variable).ok())
    }

    pub(crate) fn new(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let bytes = |variable, default| parsed(&get, variable, parse_size, default);
        let limits = Config::default();
        let limits = Config {
            window_size: bytes("HOSTBLOB_WINDOW", limits.window_size)?,
            memory_limit: bytes("HOSTBLOB_MEMORY_LIMIT", limits.memory_limit)?,
            context_limit: bytes("HOSTBLOB_CONTEXT_LIMIT", limits.context_limit)?,
            context_share: bytes("HOSTBLOB_CONTEXT_SHARE", limits.context_share)?,
            warm: Warmth {
                limit: bytes("HOSTBLOB_WARM_LIMIT", limits.warm.limit)?,
                ..limits.warm
            },
        };
        let device = get("HOSTBLOB_DEVICE").filter(|device| !device.is_empty());
        Ok(Self {
            provider: parsed(&get, "HOSTBLOB_PROVIDER", from_str, Choice::Auto)?,
            options: Options {
                device: device.and_then(|device| device.parse().ok()),
                validation: false,
                memory_limit: Some(limits.memory_limit),
            },
            limits,
            capset_id: parsed(&get, "HOSTBLOB_CAPSET_ID", capset_id, DEFAULT_CAPSET_ID)?,
        })
    }
}

fn from_str<T: FromStr<Err: ToString>>(text: &str) -> std::result::Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn capset_id(text: &str) -> std::result::Result<u32, String> {
    text.parse()
        .ok()
        .filter(|id| CAPSET_IDS.contains(id))
        .ok_or_else(|| "a number from 1 to 63 is expected".to_owned())
}

fn parsed<T>(
    get: impl Fn(&str) -> Option<String>,
    variable: &'static str,
    parse: impl Fn(&str) -> std::result::Result<T, String>,
    default: T,
) -> Result<T> {
    let Some(value) = get(variable).filter(|value| !value.is_empty()) else {
        return Ok(default);
    };
    parse(&value).map_err(|reason| Error::Environment {
        variable,
        value,
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_counts_and_the_rest_is_as_in_hostblobd() {
        let settings = Settings::new(|variable| match variable {
            "HOSTBLOB_WINDOW" => Some("64M".to_owned()),
            "HOSTBLOB_PROVIDER" => Some("system".to_owned()),
            "HOSTBLOB_CAPSET_ID" => Some(String::new()),
            _ => None,
        })
        .unwrap();
        let expected = Config {
            window_size: 64 << 20,
            ..Config::default()
        };
        assert_eq!(settings.limits, expected);
        assert_eq!(settings.provider, Choice::System);
        assert_eq!(settings.capset_id, DEFAULT_CAPSET_ID);
    }

    #[test]
    fn nonsense_is_named() {
        for (name, value) in [
            ("HOSTBLOB_WINDOW", "8GiB"),
            ("HOSTBLOB_PROVIDER", "metal"),
            ("HOSTBLOB_CAPSET_ID", "64"),
        ] {
            let get = |variable: &str| (variable == name).then(|| value.to_owned());
            let text = Settings::new(get).unwrap_err().to_string();
            assert!(text.starts_with(&format!("{name}={value}: ")), "{text}");
        }
    }
}
