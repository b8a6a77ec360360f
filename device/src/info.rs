//! `hostblobd info`: what this host can offer, and how a VMM loads it.

use hostblob_allocator::provider;

/// How QEMU loads the device: machine and memory that it can share, and the device itself.
pub const QEMU_VFIO_USER: &str = "\
qemu-system-x86_64 -M q35,memory-backend=mem \\
    -object memory-backend-memfd,id=mem,size=2G,share=on \\
    -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"path\":\"SOCKET\",\"type\":\"unix\"}}' ...";

/// The report, several lines.
pub fn report() -> String {
    format!(
        "{}\nQEMU 10.1 or newer, with hostblobd --socket-path SOCKET:\n\n{QEMU_VFIO_USER}\n",
        provider::inventory()
    )
}
