//! System calls of a process, by strace.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

/// Longest time until strace is attached, or has let go.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often a process asked for what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Calls {
    by_name: BTreeMap<String, u64>,
    /// Messages that carried descriptors away: over vhost-user that is SHMEM_MAP, and nothing else.
    pub(super) descriptors: u64,
}

impl Calls {
    /// From what strace writes, with or without -f.
    fn parse(text: &str) -> Self {
        let mut calls = Self::default();
        for line in text.lines() {
            // With -f: the thread's number first.
            let rest = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
            let Some((name, arguments)) = rest.split_once('(') else {
                continue;
            };
            // `<... futex resumed>)` is the end of a call that is counted, `+++` and `---` are none.
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                continue;
            }
            *calls.by_name.entry(name.to_owned()).or_default() += 1;
            if name == "sendmsg" && arguments.contains("SCM_RIGHTS") {
                calls.descriptors += 1;
            }
        }
        calls
    }

    pub(super) fn total(&self) -> u64 {
        self.by_name.values().sum()
    }

    /// The `count` most frequent ones.
    pub(super) fn most(&self, count: usize) -> Vec<(&str, u64)> {
        let mut all: Vec<_> = self
            .by_name
            .iter()
            .map(|(name, number)| (name.as_str(), *number))
            .collect();
        all.sort_by_key(|&(name, number)| (std::cmp::Reverse(number), name.to_owned()));
        all.truncate(count);
        all
    }
}

/// Per one of `count`.
pub(super) fn ratio(number: u64, count: usize) -> f64 {
    exact(number) / exact(u64::try_from(count).unwrap_or(u64::MAX))
}

/// Counts are far below 2^53.
pub(super) fn exact(number: u64) -> f64 {
    number as f64
}

/// An strace at work on a running process.
#[derive(Debug)]
pub(super) struct Trace {
    strace: Child,
    file: NamedTempFile,
}

/// Attaches to all threads of a process; returns when it is attached.
pub(super) fn attach(pid: u32) -> Result<Trace> {
    let file = NamedTempFile::new()?;
    let strace = Command::new("strace")
        .args(["-f", "-p", &pid.to_string(), "-o"])
        .arg(file.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("strace cannot be run")?;
    let mut trace = Trace { strace, file };
    let deadline = Instant::now() + TIMEOUT;
    while !is_traced(pid) {
        if trace.strace.try_wait()?.is_some() || Instant::now() > deadline {
            bail!(
                "strace cannot attach to process {pid}: is kernel.yama.ptrace_scope 0, or are you root?"
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(trace)
}

/// Whether each thread has a tracer.
fn is_traced(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let tracer = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|number| number.trim() != "0")
    })
}

impl Trace {
    /// Lets go; the process runs on.
    pub(super) fn finish(mut self) -> Result<Calls> {
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.strace.id())?) {
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        }
        let deadline = Instant::now() + TIMEOUT;
        while self.strace.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("strace does not let go");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Calls::parse(&fs::read_to_string(self.file.path())?))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// What the program calls to say that a phase begins.
const MARK: &str = "getppid(";

/// System calls of a program's first thread, between its marks.
pub(super) fn phases(program: &Command) -> Result<Vec<Calls>> {
    let file = NamedTempFile::new()?;
    let mut command = Command::new("strace");
    command
        .arg("-o")
        .arg(file.path())
        .arg(program.get_program());
    command.args(program.get_args());
    super::output(&mut command)?;
    Ok(split(&fs::read_to_string(file.path())?))
}

fn split(text: &str) -> Vec<Calls> {
    let mut texts = vec![String::new()];
    for line in text.lines() {
        if line.starts_with(MARK) {
            texts.push(String::new());
        } else if let Some(last) = texts.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    texts.iter().map(|text| Calls::parse(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted() {
        let text = "123   futex(0x1, FUTEX_WAIT <unfinished ...>\n\
                    124   sendmsg(7, {msg_iov=[], msg_control=[{cmsg_type=SCM_RIGHTS, cmsg_data=[9]}]}, 0) = 20\n\
                    123   <... futex resumed>)  = 0\n\
                    sendmsg(7, {msg_controllen=0}, 0) = 20\n\
                    125   --- SIGINT {si_signo=SIGINT} ---\n\
                    125   +++ exited with 0 +++\n";
        let calls = Calls::parse(text);
        assert_eq!(calls.total(), 3);
        assert_eq!(calls.most(1), [("sendmsg", 2)]);
        assert_eq!(calls.descriptors, 1);
        let totals: Vec<_> = split("a()\ngetppid() = 1\nb()\nb()\ngetppid() = 1\n")
            .iter()
            .map(Calls::total)
            .collect();
        assert_eq!(totals, [1, 2, 0]);
    }
}
