//! A client that is cut off at each of its commands, and in the middle of it.

use std::fs::File;
use std::path::Path;

use super::*;
use crate::transport::cut::{self, Framing, Frontend};

const FRAMING: Framing = Framing {
    header: size_of::<Frame>(),
    length: |header| {
        let frame = Frame::read_from_bytes(header).unwrap();
        size_of::<Frame>() + frame.length.get() as usize
    },
    by_byte: false,
};

struct Guest(Client, File);

fn connect(path: &Path) -> Guest {
    let stream = UnixStream::connect(path).unwrap();
    let mut files = Vec::new();
    let length = size_of::<Frame>() + size_of::<Hello>();
    let hello = cut::receive(&stream, length, &mut files);
    assert_eq!((hello.len(), files.len()), (length, 1));
    Guest(Client(stream), files.remove(0).into())
}

impl Frontend for Guest {
    fn ask(&mut self, command: &[u8]) -> Vec<u8> {
        self.0.response(command)
    }

    fn leave(&mut self, command: &[u8]) {
        self.0.0.write_all(&framed(command)).unwrap();
    }

    fn window(&self) -> File {
        self.1.try_clone().unwrap()
    }

    fn reset(&mut self) -> bool {
        false
    }
}

#[test]
fn a_client_that_is_cut_off_anywhere_costs_its_own_device() {
    let name =
        "transport::local::tests::cut::a_client_that_is_cut_off_anywhere_costs_its_own_device";
    cut::alone(name, || {
        let daemon = Daemon::start("local-cut");
        cut::at_each_message(FRAMING, &daemon.path, &daemon.host, &daemon.fake, connect);
    });
}

#[test]
fn a_stream_of_single_bytes_is_served_under_signals() {
    let name = "transport::local::tests::cut::a_stream_of_single_bytes_is_served_under_signals";
    cut::alone(name, || {
        let daemon = Daemon::start("local-bytes");
        cut::under_signals(FRAMING, true, &daemon.path, &daemon.fake, connect);
    });
}
