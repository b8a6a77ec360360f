//! `cargo xtask sanitize`: the suite on AddressSanitizer, of which LeakSanitizer is a part.
//!
//! Sanitized are the unit tests, hostblobd with its process for the driver, and the programs of this host that use the guest library.
//! Programs for the guest are not: they are linked statically, which the sanitizer cannot do. A report counts wherever it comes from, of a
//! process too that the suite would not miss: each is a file.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::setup;
use crate::progress::step;
use crate::{build, daemon, nightly};

const FLAGS: &str = "build.rustflags=[\"-Zsanitizer=address\"]";

/// What has unit tests of its own.
const CRATES: [&str; 7] = [
    "protocol",
    "capset",
    "allocator",
    "export",
    "device",
    "guest",
    "rutabaga-ffi",
];

/// Tests that are left out.
const SKIPPED: [&str; 9] = [
    // Our libraries in C programs, which would need Rust's sanitizer. What they call is called from Rust by others.
    "the_example_works_with_the_static_library",
    "the_example_works_with_the_shared_library_under_its_own_name",
    "each_return_code_from_c",
    "on_the_gpu",
    "another_library_is_replaced_by_its_path_alone",
    // They measure resident memory, which is the sanitizer's here.
    "nothing_grows_however_many_memories_lived",
    "nothing_grows_however_many_commands_are_refused",
    "qemu_is_killed_and_started_again",
    // Limits the address space, of which the sanitizer takes 20 TB.
    "a_daemon_without_room_for_mappings_refuses_and_goes_on",
];

/// Tests whose leaks are not looked for, and which have the sandbox: in that, nobody can look.
const LEAKY: [&str; 7] = [
    // Leaks a Vulkan object, to see that the validation layer says so.
    "vulkan::tests::the_counter_counts",
    // What a panic has left behind is not taken apart.
    "a_renderer_that_panics_is_lost_and_ours_goes_on",
    // Its daemon is traced. Looking for leaks takes a tracer too, and there can be only one.
    "faults::each_call_fails_in_turn",
    // These look at the sandbox, or start hostblobd as users do.
    "daemon::",
    "sandbox::",
    "the_socket_comes_and_goes_with_the_daemon",
    "a_path_that_is_taken_is_an_error",
];

/// What to leave out.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// Only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
}

/// Runs all; the error says where reports are.
pub fn run(flags: &Flags) -> Result<()> {
    if !nightly::is_installed() {
        bail!(
            "nightly Rust is missing, and stable Rust has no sanitizers: {}",
            nightly::MISSING
        );
    }
    setup::run()?;
    let suite = Suite::new(flags.filter.as_deref())?;
    let mut failed = Vec::new();
    if !suite.unit_tests()? {
        failed.push("unit tests");
    }
    if !suite.end_to_end_tests()? {
        failed.push("end-to-end tests");
    }
    let reports = suite.reports()?;
    for report in &reports {
        println!("{}", fs::read_to_string(report).unwrap_or_default());
    }
    if !reports.is_empty() {
        bail!(
            "{} reports of the sanitizer, in {}",
            reports.len(),
            suite.folder.display()
        );
    }
    if !failed.is_empty() {
        bail!("{} failed; see above", failed.join(" and "));
    }
    Ok(())
}

struct Suite<'a> {
    filter: Option<&'a str>,
    host: String,
    target: PathBuf,
    /// Of the reports.
    folder: PathBuf,
    /// Keeps libraries from being unloaded: their names are needed at the end.
    keeper: PathBuf,
}

impl<'a> Suite<'a> {
    /// Compiles what [`Suite::options`] preloads.
    fn new(filter: Option<&'a str>) -> Result<Self> {
        let target = build::target().join("sanitized");
        let folder = target.join("reports");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let host = nightly::host()?;
        let keeper = target.join("keep_libraries.so");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&keeper);
        if !succeeds(compiler.arg(of_sanitizer("keep_libraries.c")))? {
            bail!("cc does not compile {}", keeper.display());
        }
        Ok(Self {
            keeper,
            filter,
            host,
            target,
            folder,
        })
    }

    /// cargo, with what is built sanitized. As arguments: tests that build something have it plain.
    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = nightly::cargo();
        command
            .args(arguments)
            .args([
                "--quiet",
                "--locked",
                "--config",
                FLAGS,
                "--target",
                &self.host,
                "--target-dir",
            ])
            .arg(&self.target)
            .env_remove("RUSTFLAGS")
            .current_dir(build::workspace());
        command
    }

    /// Says to whatever is run where reports go, and which leaks are not ours.
    fn options(&self, command: &mut Command, finds_leaks: bool) {
        let options = format!(
            "log_path={}:detect_leaks={}:allow_addr2line=1",
            self.folder.join("report").display(),
            u8::from(finds_leaks)
        );
        let leaks = of_sanitizer("leaks.txt");
        let leaks = format!("print_suppressions=0:suppressions={}", leaks.display());
        command
            .env("ASAN_OPTIONS", options)
            .env("LSAN_OPTIONS", leaks)
            .env("LD_PRELOAD", &self.keeper);
    }

    /// Two runs: one that looks for leaks, and those that have some. `run` gets that, and names as the harness of tests takes them.
    fn rounds(&self, run: impl Fn(bool, &[&str]) -> Result<bool>) -> Result<bool> {
        let skipped = SKIPPED.iter().chain(&LEAKY);
        let mut most: Vec<_> = skipped.flat_map(|name| ["--skip", name]).collect();
        most.extend(self.filter);
        let is_asked = |name: &&str| self.filter.is_none_or(|filter| name.contains(filter));
        let leaky: Vec<_> = LEAKY.into_iter().filter(is_asked).collect();
        let success = run(true, &most)?;
        Ok((leaky.is_empty() || run(false, &leaky)?) && success)
    }

    fn unit_tests(&self) -> Result<bool> {
        let packages = CRATES.map(|name| format!("--package=hostblob-{name}"));
        // Tests run them.
        let mut examples = self.cargo(&["build", "--examples"]);
        if !succeeds(examples.args(&packages))? {
            return Ok(false);
        }
        self.rounds(|finds_leaks, names| {
            let mut command = self.cargo(&["test", "--no-fail-fast", "--lib", "--bins", "--tests"]);
            command.args(&packages).arg("--").args(names);
            self.options(&mut command, finds_leaks);
            succeeds(&mut command)
        })
    }

    fn end_to_end_tests(&self) -> Result<bool> {
        let guest = step("building the guest programs", build::guest)?;
        let (daemon, tests) = step("building the daemon and the end-to-end tests", || {
            let daemon = self.executable(
                "hostblobd",
                &["build", "--package=hostblob-device", "--bin=hostblobd"],
            )?;
            let tests = ["test", "--no-run", "--package=hostblob-tests", "--test=e2e"];
            anyhow::Ok((daemon, self.executable("e2e", &tests)?))
        })?;
        self.rounds(|finds_leaks, names| {
            let mut command = Command::new(&tests);
            command
                .args(names)
                .current_dir(build::workspace().join("tests"))
                .env(daemon::ENV, &daemon)
                .env(build::GUEST_ENV, &guest);
            if finds_leaks {
                command.env(daemon::SANDBOX_ENV, "off");
            }
            self.options(&mut command, finds_leaks);
            succeeds(&mut command)
        })
    }

    /// Builds, and finds the program of this name.
    fn executable(&self, name: &str, arguments: &[&str]) -> Result<PathBuf> {
        let mut command = self.cargo(arguments);
        command.arg("--message-format=json-render-diagnostics");
        let output = command
            .stderr(Stdio::inherit())
            .output()
            .context("cargo cannot be run")?;
        if !output.status.success() {
            bail!("cargo {} ended with {}", arguments.join(" "), output.status);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        executable(&text, name)
            .with_context(|| format!("cargo {} built no {name}", arguments.join(" ")))
    }

    fn reports(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.folder)?;
        let mut reports = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        reports.sort();
        Ok(reports)
    }
}

/// A file that the sanitizer is told of.
fn of_sanitizer(name: &str) -> PathBuf {
    build::workspace().join("xtask/sanitizer").join(name)
}

/// The program of this name among those that cargo tells of.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message.get("target")?.get("name")? == name;
        is_it.then(|| message.get("executable")?.as_str().map(PathBuf::from))?
    })
}

fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command.status();
    let status =
        status.with_context(|| format!("{} cannot be run", command.get_program().display()))?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_among_messages_of_cargo() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"hostblob\"},\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"e2e\"},\"executable\":\"/w/deps/e2e-12\"}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"scenarios\"},\"executable\":\"/w/scenarios\"}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages, "e2e"), Some("/w/deps/e2e-12".into()));
        assert_eq!(executable(messages, "hostblob"), None);
        assert_eq!(executable("{}", "e2e"), None);
    }
}
