//! The two serial ports that belong to the program: its output, and the control channel.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What came over them so far.
#[derive(Debug, Default)]
struct Seen {
    output: Vec<u8>,
    boots: u32,
    exit: Option<i32>,
}

/// Both channels, read by threads of their own.
#[derive(Debug, Default)]
pub(super) struct Channels {
    seen: Mutex<Seen>,
    input: Mutex<Option<UnixStream>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Channels {
    /// Connects to the sockets that QEMU waits at before it starts the guest.
    pub(super) fn connect(
        qemu: &mut Child,
        folder: &Path,
        tee: bool,
        timeout: Duration,
    ) -> Result<Arc<Self>> {
        let deadline = Instant::now() + timeout;
        let program = connect(qemu, &folder.join("program"), deadline)?;
        let control = connect(qemu, &folder.join("control"), deadline)?;
        let channels = Arc::new(Self::default());
        *lock(&channels.input) = Some(program.try_clone()?);
        let reader = Arc::clone(&channels);
        let output = std::thread::spawn(move || reader.read_output(program, tee));
        let reader = Arc::clone(&channels);
        let control = std::thread::spawn(move || reader.read_control(control));
        lock(&channels.threads).extend([output, control]);
        Ok(channels)
    }

    /// Waits for the ends of both: QEMU has ended.
    pub(super) fn finish(&self) {
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            let _ = thread.join();
        }
    }

    pub(super) fn output(&self) -> String {
        String::from_utf8_lossy(&lock(&self.seen).output).into_owned()
    }

    /// What the program has printed, from its byte `start` on.
    pub(super) fn output_from(&self, start: usize) -> String {
        let seen = lock(&self.seen);
        String::from_utf8_lossy(seen.output.get(start..).unwrap_or_default()).into_owned()
    }

    pub(super) fn output_length(&self) -> usize {
        lock(&self.seen).output.len()
    }

    /// Types a line on the program's port.
    pub(super) fn type_line(&self, line: &str) -> Result<()> {
        let mut input = lock(&self.input);
        let stream = input.as_mut().context("the program's port is closed")?;
        writeln!(stream, "{line}").context("the guest takes no input")
    }

    pub(super) fn boots(&self) -> u32 {
        lock(&self.seen).boots
    }

    pub(super) fn exit(&self) -> Option<i32> {
        lock(&self.seen).exit
    }

    fn read_output(&self, mut stream: UnixStream, tee: bool) {
        let mut buffer = [0; 4096];
        while let Ok(length) = stream.read(&mut buffer) {
            if length == 0 {
                return;
            }
            let bytes = buffer.get(..length).unwrap_or_default();
            lock(&self.seen).output.extend_from_slice(bytes);
            if tee {
                let mut stdout = std::io::stdout();
                let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
            }
        }
    }

    fn read_control(&self, stream: UnixStream) {
        let Ok(mut writer) = stream.try_clone() else {
            return;
        };
        // The first bytes of a boot may be rubbish: the port is opened before it is set up.
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            let line = line.trim();
            if line.ends_with("boot") {
                let boots = {
                    let mut seen = lock(&self.seen);
                    seen.boots += 1;
                    seen.boots
                };
                let _ = writeln!(writer, "{boots}");
            } else if let Some(status) = line.strip_prefix("exit ") {
                lock(&self.seen).exit = status.parse().ok();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(qemu: &mut Child, path: &Path, deadline: Instant) -> Result<UnixStream> {
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("{} is not served", path.display()));
            }
            Err(_) => {}
        }
        if let Some(status) = qemu.try_wait()? {
            bail!("it ended with {status}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
