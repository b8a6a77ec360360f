//! Where answers and responses go: written by the one that executes, and by waits that end later.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use hostblob_guest::protocol::Status;
use hostblob_guest::protocol::answers::{HEADER_SIZE, RECORD_SIZE};
use hostblob_guest::protocol::local::{Frame, RESPONSE};
use hostblob_guest::protocol::virtio_gpu::CtrlHdr;
use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::{U32, U64};

/// What an envelope is answered, unless nobody wants to know.
pub(super) type Told = Option<(u64, Status, [u64; 2])>;

pub(super) struct Output {
    pub(super) stream: Mutex<UnixStream>,
    pub(super) window: std::fs::File,
}

impl Output {
    pub(super) fn respond(
        &self,
        tag: u64,
        kind: u32,
        aux: u64,
        body: &[u8],
    ) -> std::io::Result<()> {
        let header = CtrlHdr {
            cmd_type: U32::new(kind),
            ..CtrlHdr::default()
        };
        let frame = Frame {
            length: U32::new((size_of::<CtrlHdr>() + body.len()).try_into().unwrap()),
            kind: U32::new(RESPONSE),
            tag: U64::new(tag),
            aux: U64::new(aux),
        };
        let mut stream = self.stream.lock().unwrap();
        stream.write_all(&[frame.as_bytes(), header.as_bytes(), body].concat())
    }

    pub(super) fn answer(&self, answers: Option<(u64, usize)>, answer: Told) {
        let (Some((sequence, status, details)), Some((page, slots))) = (answer, answers) else {
            return;
        };
        let slot = page + HEADER_SIZE as u64 + sequence % slots as u64 * RECORD_SIZE as u64;
        let mut rest = [0; 24];
        rest[..4].copy_from_slice(&status.number().to_le_bytes());
        let details = if status == Status::Ok {
            details
        } else {
            [0; 2]
        };
        rest[8..16].copy_from_slice(&details[0].to_le_bytes());
        rest[16..].copy_from_slice(&details[1].to_le_bytes());
        self.window.write_all_at(&rest, slot + 8).unwrap();
        self.window
            .write_all_at(&sequence.to_le_bytes(), slot)
            .unwrap();
    }
}
