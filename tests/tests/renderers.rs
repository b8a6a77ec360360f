//! One daemon and one guest with our context, 2D resources and a Wayland client, beside a real compositor.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use xtask::build;
use xtask::vm::{Transport, Vm};

use crate::fixture::{self, Provider};

const WINDOW: u64 = 256 << 20;
/// What Linux says of a submission that is nonsense.
const REFUSED: &str = "*ERROR* response 0x1205 (command 0x207)";
const TIMEOUT: Duration = Duration::from_secs(120);

/// Weston without a screen. Ended when dropped.
struct Weston {
    child: Child,
    folder: TempDir,
}

impl Weston {
    /// Returns when it answers.
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("weston.ini");
        let plain = "[shell]\npanel-position=none\nstartup-animation=none\nanimation=none\n";
        std::fs::write(&config, plain).expect("a configuration");
        let log = File::create(folder.path().join("log")).expect("a log");
        let child = Command::new("weston")
            .args(["--backend=headless-backend.so", "--use-pixman"])
            .args(["--width=640", "--height=480", "--socket=compositor"])
            // The screenshooter is for developers.
            .args(["--idle-time=0", "--debug"])
            .arg(format!("--config={}", config.display()))
            .env("XDG_RUNTIME_DIR", folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("weston: run `cargo xtask setup`");
        let weston = Self { child, folder };
        let deadline = Instant::now() + TIMEOUT;
        while !weston.socket().exists() {
            assert!(Instant::now() < deadline, "{}", weston.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        weston
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("compositor")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// What is on its screen: width, and pixels as red, green, blue.
    fn screenshot(&self) -> (usize, Vec<[u8; 3]>) {
        let output = Command::new("weston-screenshooter")
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .env("WAYLAND_DISPLAY", self.socket())
            .env("XDG_PICTURES_DIR", self.folder.path())
            .current_dir(self.folder.path())
            .output()
            .expect("weston-screenshooter");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{}", self.log());
        let files = std::fs::read_dir(self.folder.path()).expect("the folder");
        let paths = files.map(|file| file.expect("a file").path());
        let is_png = |path: &PathBuf| path.extension().is_some_and(|end| end == "png");
        read_png(&paths.filter(is_png).max().expect("a screenshot"))
    }
}

impl Drop for Weston {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_png(path: &Path) -> (usize, Vec<[u8; 3]>) {
    let file = std::io::BufReader::new(File::open(path).expect("a file"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let mut bytes = vec![0; reader.output_buffer_size().expect("its size")];
    let info = reader.next_frame(&mut bytes).expect("its pixels");
    let channels = info.color_type.samples();
    let pixels = bytes.chunks_exact(channels);
    let pixels = pixels.map(|pixel| [pixel[0], pixel[1], pixel[2]]);
    (info.width as usize, pixels.collect())
}

/// What the example of the export client sees of the guest's screen.
fn screen(socket: &Path, folder: &Path) -> (usize, Vec<[u8; 3]>) {
    let example = build::host_example("hostblob-export", "frame_to_png");
    let path = folder.join("screen.png");
    let output = Command::new(example.expect("the example builds"))
        .args([socket, &path])
        .output()
        .expect("the example");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    read_png(&path)
}

#[test]
fn ours_a_2d_resource_and_a_wayland_client_at_once() {
    let weston = Weston::start();
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("export.sock");
    let daemon = fixture::daemon(Provider::System, WINDOW)
        .transport(Transport::VhostUser)
        .args(["--window-mode", "on-demand", "--display", "640x480"])
        .args([Path::new("--export-socket"), &socket])
        .args([Path::new("--wayland-socket"), &weston.socket()])
        .start()
        .expect("hostblobd starts");
    let _slot = fixture::slot();
    let mut vm = Vm::builder(fixture::environment())
        .device(&daemon)
        .program(fixture::guest_program("renderers"), [] as [&str; 0])
        .timeout(TIMEOUT)
        .start()
        .expect("the guest starts");

    vm.wait_for("all three at once", 1).expect("the program");
    let (width, pixels) = screen(&socket, folder.path());
    assert_eq!((width, pixels.len()), (640, 640 * 480));
    for (x, pixel) in (0..).zip(&pixels[640 * 400..640 * 401]) {
        let [blue, green, red, _] = u32::to_le_bytes(x * 3);
        assert_eq!(*pixel, [red, green, blue], "at {x}, 400 of the screen");
    }

    let text = pixels[..640 * 240].iter();
    let text = text.filter(|pixel| **pixel != [0; 3]).count();
    assert!((100..10_000).contains(&text), "{text} pixels of console");

    let (width, pixels) = weston.screenshot();
    assert_eq!((width, pixels.len()), (640, 640 * 480));
    let guests = pixels.iter().filter(|pixel| **pixel == [0, 0x80, 0xff]);
    assert_eq!(
        guests.count(),
        256 * 128,
        "pixels of the guest's second frame"
    );
    drop(weston);

    let mut output = vm.wait().expect("the guest ends");
    print!("{}", output.stdout);
    assert_eq!(
        output.console.matches(REFUSED).count(),
        2,
        "{}",
        output.console
    );
    output.console = output.console.replace(REFUSED, "");
    fixture::succeeded(&output);
    let globals = output
        .stdout
        .lines()
        .find(|line| line.starts_with("globals"));
    let globals = globals.expect("globals");
    for interface in ["wl_compositor", "wl_shm", "xdg_wm_base"] {
        assert!(globals.contains(interface), "{globals}");
    }
    assert!(output.stdout.contains("ours goes on"));
    let log = daemon.log();
    assert!(log.contains("capset 5: cross-domain"), "{log}");
    fixture::finish(daemon);
}

/// What another renderer of rutabaga needs: its cargo feature, and nothing else here.
#[test]
#[ignore = "needs HOSTBLOB_DAEMON with the cargo feature virgl, and its libraries: docs/renderers.md"]
fn a_context_of_virglrenderer_beside_ours() {
    let daemon = fixture::daemon(Provider::System, WINDOW)
        .transport(Transport::VfioUser)
        .args(["--capsets", "virgl2,venus"])
        .start()
        .expect("hostblobd starts");
    let program = fixture::guest_program("virgl");
    let output = fixture::run_in_guest(&daemon, &program, &[]);
    print!("{}\n{}", output.stdout, daemon.log());
    fixture::succeeded(&output);
    for capset in ["capset 2: virgl2", "capset 4: venus"] {
        assert!(daemon.log().contains(capset), "{}", daemon.log());
    }
    fixture::finish(daemon);
}
