//! `hostile_driver`: takes the device from the kernel, does its worst on the queue, and gives it back. The device must go on.

use anyhow::{Context, Result, ensure};
use hostblob_tests::raw::Node;
use hostblob_tests::virtqueue::{Descriptor, INDIRECT, NEXT, Queue, SIZE, WRITE};

/// GET_DISPLAY_INFO, and the length and type of its response.
const COMMAND: [u8; 24] = {
    let mut command = [0; 24];
    command[1] = 1;
    command
};
const RESPONSE: u32 = 24 + 16 * 24;
const OK_DISPLAY_INFO: [u8; 4] = 0x1101_u32.to_le_bytes();
const ERR_UNSPEC: [u8; 4] = 0x1200_u32.to_le_bytes();

fn works(queue: &mut Queue) -> Result<()> {
    let response = queue.command(&COMMAND)?;
    ensure!(
        response.len() == RESPONSE as usize && response.starts_with(&OK_DISPLAY_INFO),
        "{response:x?}"
    );
    Ok(())
}

/// Chains that are given back with nothing in them.
fn malformed(queue: &Queue) -> Result<Vec<Vec<Descriptor>>> {
    let command = (queue.command, 24, NEXT, 1);
    let room = (queue.response, 1024, WRITE, 0);
    let mut chains = vec![
        vec![(queue.command, 24, NEXT, 0)],
        vec![command, (queue.response, 1024, WRITE | NEXT, 0)],
        vec![(queue.command, 24, NEXT, SIZE)],
        vec![(queue.command, 24, NEXT, u16::MAX)],
        vec![(queue.command, 0, NEXT, 1), room],
        vec![(queue.command, u32::MAX, NEXT, 1), room],
        vec![command, (queue.response, 0, WRITE, 0)],
        vec![command, (queue.response, u32::MAX, WRITE, 0)],
        vec![
            (queue.response, 1024, WRITE | NEXT, 1),
            (queue.command, 24, 0, 0),
        ],
        vec![(queue.table, 24, INDIRECT, 0)],
        vec![(queue.table, 0, INDIRECT, 0)],
        vec![(queue.table, 32, INDIRECT | NEXT, 1), room],
        // The table's first entry is a table again.
        vec![(queue.table, 32, INDIRECT, 0)],
        // As long as tables can be, and over the end of the memory behind it.
        vec![(queue.table, 65535 * 16, INDIRECT, 0)],
        // No place for an answer, or too little.
        vec![(queue.command, 24, 0, 0)],
        vec![command, (queue.response, RESPONSE - 1, WRITE, 0)],
    ];
    // The ends of the address space, where no memory is, and the registers of the device.
    let registers = queue.bars()?.first().context("a BAR")?.0;
    let nowhere = [1 << 52, 1 << 63, u64::MAX - 4095, u64::MAX - 7, registers];
    for address in nowhere {
        chains.push(vec![(address, 24, NEXT, 1), room]);
        chains.push(vec![command, (address, 1024, WRITE, 0)]);
        chains.push(vec![(address, 32, INDIRECT, 0)]);
    }
    Ok(chains)
}

fn main() -> Result<()> {
    let mut queue = Queue::take()?;
    works(&mut queue).context("at first")?;
    let chains = malformed(&queue)?;
    for chain in &chains {
        queue.put(0, &COMMAND);
        let nested = (queue.table, 16, INDIRECT, 0);
        queue.describe_indirect(&[nested, (queue.response, 1024, WRITE, 0)]);
        queue.describe(chain);
        queue.offer(0);
        let answer = queue.answer().with_context(|| format!("{chain:x?}"))?;
        ensure!(answer == (0, 0), "{chain:x?}: {answer:?}");
        works(&mut queue).with_context(|| format!("after {chain:x?}"))?;
    }
    println!("{} chains given back", chains.len());

    // Each is refused with a reason, and the log of the host is not filled.
    for number in 0..500_u32 {
        let mut nonsense = COMMAND;
        nonsense[..4].copy_from_slice(&(0xdead_0000 + number).to_le_bytes());
        let response = queue.command(&nonsense)?;
        ensure!(response.starts_with(&ERR_UNSPEC), "{response:x?}");
    }

    // A response into the command, into the rings, and into the window, which may be memory for the device: there, and nowhere else.
    let window = queue
        .bars()?
        .iter()
        .copied()
        .max_by_key(|(_, length)| *length);
    let window = window.context("a window")?.0;
    for room in [queue.command, queue.table, window] {
        queue.put(0, &COMMAND);
        queue.describe(&[(queue.command, 24, NEXT, 1), (room, RESPONSE, WRITE, 0)]);
        queue.offer(0);
        let (_, length) = queue.answer()?;
        ensure!(
            length == RESPONSE || length == 0 && room == window,
            "{length}"
        );
        works(&mut queue).with_context(|| format!("a response at {room:#x}"))?;
    }

    // What breaks the queue, until the device is reset: a head that is not there, an index that jumps or goes back.
    type Attack = fn(&mut Queue);
    let breaks: [(&str, Attack); 4] = [
        ("head 16 of 16", |queue| queue.offer(SIZE)),
        ("head 65535", |queue| queue.offer(u16::MAX)),
        ("an index that jumps", |queue| queue.skip_to(100)),
        ("an index that goes back", |queue| queue.skip_to(u16::MAX)),
    ];
    for (what, attack) in breaks {
        queue.start()?;
        attack(&mut queue);
        ensure!(queue.is_broken(), "{what}: status {}", queue.status());
        queue.tell();
        ensure!(queue.answers() == 0, "{what}");
        queue.start().context(what)?;
        works(&mut queue).context(what)?;
    }
    println!("{} queues broken and mended", breaks.len());

    // Before DRIVER_OK nothing is served; then it is, and addresses that come later are none.
    queue.set_up()?;
    queue.put(0, &COMMAND);
    queue.describe(&[
        (queue.command, 24, NEXT, 1),
        (queue.response, 1024, WRITE, 0),
    ]);
    queue.offer(0);
    std::thread::sleep(std::time::Duration::from_millis(50));
    ensure!(queue.answers() == 0, "served before DRIVER_OK");
    queue.start()?;
    queue.set_addresses(1 << 52);
    works(&mut queue).context("addresses that came after DRIVER_OK")?;

    queue.give_back()?;
    let node = Node::open().context("the kernel's driver again")?;
    let blob = node.create(4096)?;
    ensure!(node.map(&blob)?.first_not_zero().is_none(), "not zeros");
    println!("the kernel's driver works");
    Ok(())
}
