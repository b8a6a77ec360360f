//! A VMM for which no device can be made is told so by the end of its connection, and the next one is served.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use vhost::VhostBackend;
use vhost::vhost_user::Frontend;

use super::vfio_user::fake::FakeDevice;
use super::{TransportError, listen, vfio_user, vhost_user};
use crate::gpu::Waker;
use crate::shutdown::Shutdown;

const REFUSED: usize = 2;

/// The first VMMs have none, as where the host is out of memory.
fn new_device(made: &AtomicUsize, waker: Waker) -> Result<FakeDevice, &'static str> {
    if made.fetch_add(1, Ordering::SeqCst) < REFUSED {
        return Err("no memory");
    }
    Ok(FakeDevice::new(waker).0)
}

fn check(
    name: &str,
    serve: impl Fn(&UnixListener, &Shutdown) -> Result<(), TransportError> + Sync,
    talk: impl Fn(&std::path::Path),
) {
    let path = std::env::temp_dir().join(format!("hostblob-{name}-{}", std::process::id()));
    let listener = listen(&path).unwrap();
    let shutdown = Shutdown::new().unwrap();
    std::thread::scope(|scope| {
        let served = scope.spawn(|| serve(&listener, &shutdown));
        for _ in 0..REFUSED {
            let mut vmm = UnixStream::connect(&path).unwrap();
            vmm.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            assert_eq!(vmm.read(&mut [0]).unwrap(), 0, "its connection ends");
        }
        talk(&path);
        shutdown.request();
        served.join().unwrap().unwrap();
    });
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_vmm_without_a_device_is_hung_up_on_over_vfio_user() {
    let made = AtomicUsize::new(0);
    check(
        "no-device-vfio",
        |listener, shutdown| vfio_user::serve(listener, |waker| new_device(&made, waker), shutdown),
        |path| {
            ::vfio_user::Client::new(path).unwrap();
        },
    );
}

#[test]
fn a_vmm_without_a_device_is_hung_up_on_over_vhost_user() {
    let made = AtomicUsize::new(0);
    check(
        "no-device-vhost",
        |listener, shutdown| {
            vhost_user::serve(listener, |waker| new_device(&made, waker), shutdown)
        },
        |path| {
            let vmm = Frontend::connect(path, 2).unwrap();
            assert_ne!(vmm.get_features().unwrap(), 0);
        },
    );
}
