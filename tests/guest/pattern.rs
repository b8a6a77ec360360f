//! Bytes that say where they belong, and checks that name the first wrong one.

use anyhow::{Context, Result, bail};
use hostblob_guest::{Blob, Memory};

/// Something with mapped bytes.
pub trait Bytes {
    /// How many.
    fn length(&self) -> u64;
    /// Copies them out.
    fn get(&self, offset: u64, into: &mut [u8]) -> hostblob_guest::Result<()>;
    /// Copies them in.
    fn put(&self, offset: u64, bytes: &[u8]) -> hostblob_guest::Result<()>;
}

impl Bytes for Memory {
    fn length(&self) -> u64 {
        self.size()
    }
    fn get(&self, offset: u64, into: &mut [u8]) -> hostblob_guest::Result<()> {
        self.read(offset, into)
    }
    fn put(&self, offset: u64, bytes: &[u8]) -> hostblob_guest::Result<()> {
        self.write(offset, bytes)
    }
}

impl Bytes for Blob {
    fn length(&self) -> u64 {
        self.size()
    }
    fn get(&self, offset: u64, into: &mut [u8]) -> hostblob_guest::Result<()> {
        self.read(offset, into)
    }
    fn put(&self, offset: u64, bytes: &[u8]) -> hostblob_guest::Result<()> {
        self.write(offset, bytes)
    }
}

const STEP: u64 = 1 << 20;

/// Eight bytes of the pattern that `seed` names. None is 0; they differ between pages, words and seeds.
fn word(seed: u64, index: u64) -> u64 {
    let mixed =
        (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed | 0x0101_0101_0101_0101
}

/// The byte at `position` of the pattern that `seed` names.
pub fn byte(seed: u64, position: u64) -> u8 {
    word(seed, position / 8).to_le_bytes()[(position % 8) as usize]
}

/// A part of a pattern. By words: an emulated processor makes many of these.
pub fn bytes(seed: u64, position: u64, length: u64) -> Vec<u8> {
    let (first, end) = (position / 8, (position + length).div_ceil(8));
    let mut bytes = Vec::with_capacity(8 * (end - first) as usize);
    for index in first..end {
        bytes.extend_from_slice(&word(seed, index).to_le_bytes());
    }
    bytes.drain(..(position % 8) as usize);
    bytes.truncate(length as usize);
    bytes
}

/// All bytes, in steps: offset and bytes.
fn each(memory: &impl Bytes, mut look: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0xa5; STEP.min(memory.length()) as usize];
    let mut offset = 0;
    while offset < memory.length() {
        let length = STEP.min(memory.length() - offset) as usize;
        memory.get(offset, &mut buffer[..length])?;
        look(offset, &buffer[..length])?;
        offset += length as u64;
    }
    Ok(())
}

/// Writes the whole pattern.
pub fn write(memory: &impl Bytes, seed: u64) -> Result<()> {
    let mut offset = 0;
    while offset < memory.length() {
        let length = STEP.min(memory.length() - offset);
        memory.put(offset, &bytes(seed, offset, length))?;
        offset += length;
    }
    Ok(())
}

/// Every byte is the pattern's.
pub fn check(memory: &impl Bytes, seed: u64) -> Result<()> {
    each(memory, |offset, found| {
        same(found, &bytes(seed, offset, found.len() as u64), offset)
    })
}

/// Every byte is 0.
pub fn check_zero(memory: &impl Bytes) -> Result<()> {
    let zeros = vec![0; STEP.min(memory.length()) as usize];
    each(memory, |offset, found| {
        same(found, &zeros[..found.len()], offset)
            .with_context(|| format!("of {:#x} bytes, all of them 0", memory.length()))
    })
}

/// Every 32-bit word is `value`.
pub fn check_words(memory: &impl Bytes, value: u32) -> Result<()> {
    each(memory, |offset, found| {
        same(found, &value.to_le_bytes().repeat(found.len() / 4), offset)
    })
}

/// The bytes at `offset` are these.
pub fn check_at(memory: &impl Bytes, offset: u64, expected: &[u8]) -> Result<()> {
    let mut found = vec![0xa5; expected.len()];
    memory.get(offset, &mut found)?;
    same(&found, expected, offset)
}

fn same(found: &[u8], expected: &[u8], offset: u64) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let at = found
        .iter()
        .zip(expected)
        .take_while(|(a, b)| a == b)
        .count();
    bail!(
        "byte {:#x} is {:#04x?}, not {:#04x?}",
        offset + at as u64,
        found.get(at),
        expected.get(at)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_of_the_whole() {
        let whole = bytes(7, 0, 64);
        assert!(whole.iter().all(|&byte| byte != 0));
        for (position, length) in [(0, 0), (0, 1), (3, 2), (7, 9), (8, 8), (13, 40), (63, 1)] {
            let part = bytes(7, position, length);
            assert_eq!(part, whole[position as usize..][..length as usize]);
            let single: Vec<_> = (position..position + length)
                .map(|at| byte(7, at))
                .collect();
            assert_eq!(part, single);
        }
    }
}
