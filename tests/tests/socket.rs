//! Every scenario over the local socket, each against a daemon of its own, with every provider.

use hostblob_guest::capset;
use hostblob_tests::scenario::{self, SMALL_WINDOW, Setup, WINDOW};

use crate::fixture::{self, Provider};

fn check(name: &str, provider: Provider, window: u64) {
    let daemon = fixture::daemon(provider, window)
        .start()
        .expect("hostblobd starts");
    let setup = Setup {
        socket: Some(daemon.local_socket()),
        program: fixture::host_program("scenarios").to_owned(),
        provider: Some(match provider {
            Provider::System => capset::Provider::System,
            Provider::Vulkan => capset::Provider::Vulkan,
            Provider::Gl => capset::Provider::Gl,
        }),
    };
    if let Err(error) = scenario::run(name, &setup) {
        panic!("{error:#}\n--- hostblobd\n{}", daemon.log());
    }
    scenario::basics::nothing_is_left(&setup).expect("all memory is free afterwards");
    fixture::finish(daemon);
}

macro_rules! tests {
    ($($list:tt)*) => {
        with_provider! { system System $($list)* }
        with_provider! { vulkan Vulkan $($list)* }
        with_provider! { gl Gl $($list)* }
    };
}

macro_rules! with_provider {
    (
        $module:ident $provider:ident
        any { $($a:ident::$any:ident,)* } render_node { $($r:ident::$node:ident,)* } small_window { $($s:ident::$small:ident,)* }
    ) => {
        mod $module {
            const PROVIDER: super::Provider = super::Provider::$provider;
            $(#[test] fn $any() { super::check(stringify!($any), PROVIDER, super::WINDOW); })*
            $(#[test] fn $small() { super::check(stringify!($small), PROVIDER, super::SMALL_WINDOW); })*
        }
    };
}
hostblob_tests::for_each_scenario!(tests);

/// The program that `cargo xtask demo --no-vm` runs. Each provider has its story; what is measured at the end, 40,000 lives of blobs, is the
/// same with each, and so it is with one of them.
#[test]
fn demo_tells_its_story() {
    for provider in [Provider::System, Provider::Vulkan, Provider::Gl] {
        let daemon = fixture::daemon(provider, WINDOW)
            .start()
            .expect("hostblobd starts");
        let measures = provider == Provider::System;
        let mut demo = std::process::Command::new(fixture::host_program("demo"));
        let output = demo
            .arg("--socket")
            .arg(daemon.local_socket())
            .args((!measures).then_some("--brief"))
            .output()
            .expect("demo runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(text.contains("all 16777216 bytes are right"), "{text}");
        assert!(text.contains("unknown there"), "{text}");
        let measured = text.contains("with 10,000 blobs alive a new one takes");
        assert_eq!(measured, measures, "{text}");
        fixture::finish(daemon);
    }
}
