//! Two APIs over the same window memory at once: what one writes the other reads, byte for byte.

use std::os::fd::OwnedFd;

use crossbeam_channel::Receiver;

use super::*;
use crate::provider::mapping::sealed_memfd;
use crate::provider::vulkan::VulkanProvider;
use crate::provider::{Completion, FileId};

const WINDOW: u64 = 4 * MIB;

/// A session over a window that it shares with others.
struct Client {
    session: Box<dyn Session>,
    answers: Receiver<Completion>,
    sequence: u64,
    window_type: u32,
}

impl Client {
    fn new(provider: &dyn Provider, window: &OwnedFd) -> Self {
        let (sender, answers) = crossbeam_channel::unbounded();
        let session = provider.connect(Box::new(move |completion| {
            let _ = sender.send(completion);
        }));
        let types = &provider.description().memory_types;
        let window_type = types
            .iter()
            .position(|kind| kind.placement == Placement::Window);
        let mut client = Self {
            session,
            answers,
            sequence: 0,
            window_type: u32::try_from(window_type.unwrap()).unwrap(),
        };
        client.ok(Request::AddFile {
            file: FileId(0),
            descriptor: window.try_clone().unwrap(),
            length: WINDOW,
        });
        client
    }

    fn ok(&mut self, request: Request) {
        let text = format!("{request:?}");
        self.sequence += 1;
        self.session.submit(self.sequence, request);
        let limit = std::time::Duration::from_secs(60);
        let answer = self.answers.recv_timeout(limit).expect("an answer in time");
        assert_eq!(
            (answer.sequence, answer.result),
            (self.sequence, Ok(None)),
            "{text}"
        );
    }

    fn attach(&mut self, name: u64, offset: u64, length: u64) -> AttachmentId {
        let attachment = AttachmentId(name);
        self.ok(Request::Attach {
            attachment,
            file: FileId(0),
            offset,
            length,
            memory_type: self.window_type,
        });
        attachment
    }

    fn copy(&mut self, from: (AttachmentId, u64), to: (AttachmentId, u64), length: u64) {
        self.ok(Request::Copy {
            source: from.0,
            source_offset: from.1,
            destination: to.0,
            destination_offset: to.1,
            length,
        });
    }
}

fn vulkan() -> VulkanProvider {
    VulkanProvider::new(&Options {
        validation: true,
        ..Options::default()
    })
    .expect(
        "install libvulkan1 mesa-vulkan-drivers vulkan-validationlayers or run cargo xtask setup",
    )
}

fn read(window: &OwnedFd, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    assert_eq!(
        rustix::io::pread(window, &mut bytes[..], offset),
        Ok(bytes.len())
    );
    bytes
}

fn pattern(seed: u64, length: u64) -> Vec<u8> {
    (0..length)
        .map(|i| ((i ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_be_bytes()[0])
        .collect()
}

/// `writer` fills and copies bytes of the CPU's into a range; `reader` copies that range elsewhere.
fn pass(window: &OwnedFd, writer: &mut Client, reader: &mut Client, round: u64) {
    const SIZE: u64 = MIB;
    // The same names in both sessions, over the same bytes: [0, 1) the CPU's, [1, 2) shared, [2, 3) the reader's.
    let base = 10 * round;
    let own = writer.attach(base, 0, SIZE);
    let written = writer.attach(base + 1, SIZE, SIZE);
    let read_from = reader.attach(base + 1, SIZE, SIZE);
    let out = reader.attach(base + 2, 2 * SIZE, SIZE);
    for step in 0..4 {
        let bytes = pattern(100 * round + step, SIZE);
        assert_eq!(rustix::io::pwrite(window, &bytes, 0), Ok(bytes.len()));
        let word = 0xA1B2_C300 + u32::try_from(step).unwrap();
        writer.copy((own, 0), (written, 0), SIZE);
        writer.ok(fill(written, 4096, 4100, word));
        reader.copy((read_from, 0), (out, 0), SIZE);
        let mut expected = bytes;
        expected[4096..4096 + 4100].copy_from_slice(&word.to_le_bytes().repeat(1025));
        assert!(
            read(window, 2 * SIZE, SIZE) == expected,
            "round {round}, step {step}"
        );
        // A part at odd bytes, too.
        reader.copy((read_from, 4095), (out, 7), 4103);
        assert_eq!(
            read(window, 2 * SIZE + 7, 4103),
            expected[4095..4095 + 4103]
        );
    }
    for (client, names) in [(writer, [own, written]), (reader, [read_from, out])] {
        for attachment in names {
            client.ok(Request::Release { attachment });
        }
    }
}

#[test]
fn gl_and_vulkan_see_each_others_bytes() {
    let (gl, vulkan) = (validated(), vulkan());
    let messages = vulkan.validation_counter();
    let window = sealed_memfd("both-at-once", WINDOW).unwrap();
    let mut by_gl = Client::new(&gl, &window);
    let mut by_vulkan = Client::new(&vulkan, &window);
    for round in 0..4 {
        pass(&window, &mut by_gl, &mut by_vulkan, 2 * round);
        pass(&window, &mut by_vulkan, &mut by_gl, 2 * round + 1);
    }
    // Nothing beside the ranges.
    assert!(read(&window, 3 * MIB, MIB).iter().all(|byte| *byte == 0));
    drop((by_gl, by_vulkan, vulkan));
    finish(gl);
    assert_eq!(messages.count(), 0, "validation messages, see the log");
}

#[test]
fn two_gl_sessions_share_a_window_as_well() {
    let gl = validated();
    let window = sealed_memfd("both-gl", WINDOW).unwrap();
    let (mut one, mut two) = (Client::new(&gl, &window), Client::new(&gl, &window));
    pass(&window, &mut one, &mut two, 0);
    pass(&window, &mut two, &mut one, 1);
    drop((one, two));
    finish(gl);
}
