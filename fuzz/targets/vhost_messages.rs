//! Messages of a hostile VMM, in any order, with wrong sizes and descriptors, to a whole connection with its threads.

#![no_main]

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use hostblob_device::transport::vhost_user::fuzzing::serve_connection;
use hostblob_fuzz::gpu;
use libfuzzer_sys::fuzz_target;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

const MEMORY: u64 = 1 << 20;
/// The protocol's version, and the flag that asks for an acknowledgement.
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;

#[derive(Debug, Arbitrary)]
struct Message<'a> {
    request: u8,
    need_reply: bool,
    odd_flags: Option<u32>,
    odd_size: Option<u32>,
    body: Body<'a>,
    files: Vec<Descriptor>,
}

#[derive(Debug, Arbitrary)]
enum Body<'a> {
    Bytes(&'a [u8]),
    Word(u64),
    /// `vhost_vring_state`.
    State {
        index: u8,
        value: u32,
    },
    /// `vhost_vring_addr`.
    Addresses {
        index: u8,
        flags: u8,
        pages: [u8; 4],
    },
    /// One region of the memory that [`Descriptor::Memory`] is.
    Region {
        count: u8,
        address: u64,
        size: u64,
        user: u64,
        offset: u64,
    },
    /// All of it.
    AllMemory,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Descriptor {
    Event,
    Memory,
    Socket,
}

impl Body<'_> {
    fn bytes(&self) -> Vec<u8> {
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        match *self {
            Body::Bytes(bytes) => bytes.to_vec(),
            Body::Word(word) => word.to_ne_bytes().to_vec(),
            Body::State { index, value } => words(&[u64::from(index) | u64::from(value) << 32]),
            Body::Addresses {
                index,
                flags,
                pages,
            } => {
                let [d, u, a, l] = pages.map(|page| u64::from(page) * 4096);
                words(&[u64::from(index) | u64::from(flags) << 32, d, u, a, l])
            }
            Body::Region {
                count,
                address,
                size,
                user,
                offset,
            } => words(&[count.into(), address, size, user, offset]),
            Body::AllMemory => words(&[1, 0, MEMORY, 0, 0]),
        }
    }
}

fn open(descriptor: Descriptor) -> OwnedFd {
    match descriptor {
        Descriptor::Event => eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd"),
        Descriptor::Memory => {
            let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd");
            ftruncate(&file, MEMORY).expect("memory");
            file
        }
        Descriptor::Socket => UnixStream::pair().expect("sockets").0.into(),
    }
}

fn send(stream: &UnixStream, message: &Message<'_>) {
    let body = message.body.bytes();
    let flags = VERSION | if message.need_reply { NEED_REPLY } else { 0 };
    let size = u32::try_from(body.len()).expect("inputs are small");
    let mut bytes: Vec<u8> = [
        u32::from(message.request % 48),
        message.odd_flags.unwrap_or(flags),
        message.odd_size.unwrap_or(size),
    ]
    .iter()
    .flat_map(|word| word.to_ne_bytes())
    .collect();
    bytes.extend(body);
    let files: Vec<_> = message.files.iter().take(9).copied().map(open).collect();
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(9))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    // Fails when the device has ended the connection.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = rustix::net::sendmsg(stream, &[IoSlice::new(&bytes)], &mut control, flags);
}

fuzz_target!(|messages: Vec<Message<'_>>| {
    let (mut vmm, device) = UnixStream::pair().expect("sockets");
    for message in &messages {
        send(&vmm, message);
    }
    vmm.shutdown(Shutdown::Write).expect("shutdown");
    serve_connection(device, gpu);
    let mut replies = Vec::new();
    let _ = vmm.read_to_end(&mut replies);
});
