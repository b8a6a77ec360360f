//! Anything as commands, to a device that has contexts and blobs: each is answered with a response of the specification, and the device goes on.

#![no_main]

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use hostblob_allocator::provider::Piece;
use hostblob_device::gpu::{Gpu, GuestPages};
use hostblob_fuzz::commands::{
    check_reset, check_response, command, create_blob, create_context, map_blob, run, submit,
    wait_until,
};
use hostblob_fuzz::{PAGE, gpu, host};
use hostblob_protocol::EnvelopeBuilder;
use hostblob_protocol::virtio_gpu::{CtrlHdr, GetCapsetInfo, cmd, resp};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use zerocopy::IntoBytes;

/// The guest's memory: a MiB at address 0.
const MEMORY: u64 = 1 << 20;

#[derive(Debug, Arbitrary)]
enum Command<'a> {
    Bytes(&'a [u8]),
    /// Of a type that exists, or nearly.
    Typed {
        kind: u8,
        flags: u8,
        fence: u64,
        context: u8,
        ring: u8,
        body: &'a [u8],
    },
    /// The same, whose structure has small numbers: 32 bits each.
    Words {
        kind: u8,
        fenced: bool,
        context: u8,
        words: Vec<u8>,
    },
    /// SUBMIT_3D of structures of requests that exist, or nearly.
    Submit {
        context: u8,
        fenced: bool,
        sequence: u8,
        structures: Vec<(u8, &'a [u8])>,
    },
    /// The VMM changes the guest's memory.
    MemoryChanged {
        there: bool,
    },
}

struct Memory(bool);

impl GuestPages for Memory {
    fn piece(&self, address: u64, length: u64) -> Option<Piece> {
        static FILE: OnceLock<Arc<File>> = OnceLock::new();
        let file = FILE.get_or_init(|| {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create("guest", flags).expect("memfd");
            ftruncate(&file, MEMORY).expect("memory");
            fcntl_add_seals(&file, SealFlags::SHRINK).expect("a seal");
            Arc::new(file.into())
        });
        let left = MEMORY.checked_sub(address).filter(|_| self.0)?;
        Some(Piece {
            file: Arc::clone(file),
            offset: address,
            length: length.min(left),
        })
    }
}

/// Types of 0x0100 to 0x011f, 0x0200 to 0x021f, 0x0300 to 0x031f.
fn kind_of(kind: u8) -> u32 {
    u32::from(kind & 0x1f) | (u32::from(kind >> 5) % 3 + 1) << 8
}

fn bytes(command: &Command<'_>) -> Vec<u8> {
    let header = |kind, flags: u8, fence: u64, context: u8, ring| CtrlHdr {
        cmd_type: kind_of(kind).into(),
        flags: u32::from(flags & 3).into(),
        fence_id: fence.into(),
        ctx_id: u32::from(context % 8).into(),
        ring_idx: ring,
        padding: [0; 3],
    };
    match *command {
        Command::Bytes(bytes) => bytes.to_vec(),
        Command::Typed {
            kind,
            flags,
            fence,
            context,
            ring,
            body,
        } => [header(kind, flags, fence, context, ring).as_bytes(), body].concat(),
        Command::Words {
            kind,
            fenced,
            context,
            ref words,
        } => {
            let mut bytes = header(kind, fenced.into(), 1, context, 0)
                .as_bytes()
                .to_vec();
            for &word in words {
                // The high bits are a number of pages.
                let word = u32::from(word & 0x1f) << if word & 0x80 == 0 { 0 } else { 12 };
                bytes.extend(word.to_le_bytes());
            }
            bytes
        }
        Command::Submit {
            context,
            fenced,
            sequence,
            ref structures,
        } => {
            let mut envelope = EnvelopeBuilder::new(sequence.into());
            for &(number, payload) in structures {
                envelope = envelope.structure(0x8000 | u16::from(number % 24), 1, payload);
            }
            let mut bytes = submit(u32::from(context % 8), &envelope.build());
            bytes[4] = fenced.into();
            bytes
        }
        Command::MemoryChanged { .. } => Vec::new(),
    }
}

/// Two contexts, a mapped blob of each, and one that is not mapped.
fn prepare(gpu: &mut Gpu) {
    for context in [1, 2] {
        assert_eq!(run(gpu, &create_context(context)), resp::OK_NODATA);
        let blob = create_blob(context, context, 0, 2 * PAGE);
        assert_eq!(run(gpu, &blob), resp::OK_NODATA);
        let map = map_blob(context, u64::from(context) * 4 * PAGE);
        assert_eq!(run(gpu, &map), resp::OK_MAP_INFO);
    }
    assert_eq!(run(gpu, &create_blob(1, 3, 0, PAGE)), resp::OK_NODATA);
}

fuzz_target!(|commands: Vec<Command<'_>>| {
    let mut gpu = gpu(Arc::new(|| {}));
    prepare(&mut gpu);
    let mut memory = Memory(true);
    let mut kept = HashMap::new();
    for (tag, command) in (1..).zip(&commands) {
        if let Command::MemoryChanged { there } = command {
            memory = Memory(*there);
            gpu.guest_pages_changed(&memory);
            continue;
        }
        let bytes = bytes(command);
        let _ = gpu.wanted_object(&bytes);
        match gpu.execute(tag, &bytes, &memory) {
            Some(response) => check_response(&bytes, response.as_bytes()),
            None => drop(kept.insert(tag, bytes)),
        }
        for (tag, response) in gpu.completed() {
            let command = kept.remove(&tag).expect("answered once");
            check_response(&command, response.as_bytes());
        }
    }
    wait_until("what fences wait for", || {
        for (tag, response) in gpu.completed() {
            let command = kept.remove(&tag).expect("answered once");
            check_response(&command, response.as_bytes());
        }
        kept.is_empty()
    });
    // The device is as good as before.
    let info = command(cmd::GET_CAPSET_INFO, 0, &GetCapsetInfo::default());
    assert_eq!(run(&mut gpu, &info), resp::OK_CAPSET_INFO);
    check_reset(&mut gpu, host());
});
