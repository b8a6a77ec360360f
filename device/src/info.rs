//! `hostblobd info`: what this host can offer, and how a VMM loads it.

use hostblob_allocator::provider;
use hostblob_protocol::DEFAULT_CAPSET_ID;

use crate::gpu::renderers;

/// How QEMU loads the device: machine and memory that it can share, and the device itself.
pub const QEMU_VFIO_USER: &str = "\
qemu-system-x86_64 -M q35,memory-backend=mem \\
    -object memory-backend-memfd,id=mem,size=2G,share=on \\
    -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"path\":\"SOCKET\",\"type\":\"unix\"}}' ...";

/// How cloud-hypervisor loads it.
pub const CLOUD_HYPERVISOR: &str =
    "cloud-hypervisor --memory size=2G,shared=on --user-device socket=SOCKET ...";

/// QEMU over vhost-user: 16 is virtio's number of a GPU.
pub const QEMU_VHOST_USER: &str = "\
qemu-system-x86_64 -M q35,memory-backend=mem \\
    -object memory-backend-memfd,id=mem,size=2G,share=on \\
    -chardev socket,id=gpu,path=SOCKET \\
    -device vhost-user-test-device-pci,chardev=gpu,virtio-id=16,num_vqs=2,vq_size=256,config_size=24 ...";

/// How crosvm loads it.
pub const CROSVM: &str = "crosvm run --vhost-user gpu,socket=SOCKET,max-queue-size=256 ...";

/// What guests can make contexts of.
fn capsets() -> String {
    let built_in = match renderers::BUILT_IN {
        [] => "none in this build".to_owned(),
        names => names.join(", "),
    };
    format!(
        "capsets: {DEFAULT_CAPSET_ID} (hostblob; --capset-id); 5 (cross-domain) with --wayland-socket; with --capsets: {built_in}"
    )
}

/// The report, several lines.
pub fn report() -> String {
    let vhost_user = "hostblobd --transport vhost-user --socket-path SOCKET";
    format!(
        "{}\n{}\n\n\
         QEMU 10.1 or newer, with hostblobd --socket-path SOCKET:\n\n{QEMU_VFIO_USER}\n\n\
         cloud-hypervisor, with hostblobd --socket-path SOCKET:\n\n{CLOUD_HYPERVISOR}\n\n\
         QEMU 11 or newer, with {vhost_user}:\n\n{QEMU_VHOST_USER}\n\n\
         crosvm, with {vhost_user}:\n\n{CROSVM}\n",
        provider::inventory(),
        capsets(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtqueue::{QUEUE_SIZE, QUEUES};

    #[test]
    fn the_lines_have_our_queues() {
        let queues = format!("num_vqs={QUEUES},vq_size={QUEUE_SIZE},");
        assert!(QEMU_VHOST_USER.contains(&queues), "{queues}");
        let size = format!("max-queue-size={QUEUE_SIZE} ");
        assert!(CROSVM.contains(&size), "{size}");
    }
}
