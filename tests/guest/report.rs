//! Lines by which a program in the guest tells the harness how each scenario went.

use std::collections::HashMap;
use std::time::Duration;

const PREFIX: &str = "scenario ";

/// The line of one scenario; a failure is one line too.
pub fn line(name: &str, result: &anyhow::Result<()>, time: Duration) -> String {
    let outcome = match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("FAILED: {}", format!("{error:#}").replace('\n', "; ")),
    };
    format!("{PREFIX}{name} ({} ms): {outcome}", time.as_millis())
}

/// What the lines of a program say: by name, `None` where it went well.
pub fn parse(output: &str) -> HashMap<String, Option<String>> {
    output
        .lines()
        .filter_map(|line| {
            let (head, outcome) = line.trim_end().strip_prefix(PREFIX)?.split_once("): ")?;
            let name = head.split(' ').next()?.to_owned();
            Some((name, (outcome != "ok").then(|| outcome.to_owned())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back() {
        let good = line("a_b", &Ok(()), Duration::from_millis(12));
        assert_eq!(good, "scenario a_b (12 ms): ok");
        let bad = line("c", &Err(anyhow::anyhow!("x: y\nz")), Duration::ZERO);
        let seen = parse(&format!("noise\n{good}\r\n{bad}\nscenario cut off (1 ms"));
        assert_eq!(seen.len(), 2);
        assert_eq!(seen["a_b"], None);
        assert_eq!(seen["c"].as_deref(), Some("FAILED: x: y; z"));
    }
}
