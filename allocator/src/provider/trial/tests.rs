//! Drivers that lie about what they do are found out.

use super::*;

const GRAIN: u64 = 4096;

/// What a driver does in place of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Honest,
    Nothing,
    /// It copied when it attached, and knows nothing of what was written since.
    OldBytes,
    AllButTheLast,
    CannotFill,
    FillsHalf,
    Refuses,
}

struct Driver<'a> {
    scratch: &'a Scratch,
    way: Way,
    first: Option<Vec<u8>>,
}

impl Driver<'_> {
    fn put(&self, bytes: &[u8], offset: u64) {
        let written = rustix::io::pwrite(&self.scratch.reader, bytes, offset).unwrap();
        assert_eq!(written, bytes.len());
    }
}

impl Trial for Driver<'_> {
    fn copy(&mut self) -> Result<(), ProviderError> {
        let mut bytes = self.scratch.read(self.scratch.source()).unwrap();
        match self.way {
            Way::Nothing => return Ok(()),
            Way::Refuses => return Err(ProviderError::OutOfDeviceMemory("none".to_owned())),
            Way::OldBytes => bytes = self.first.get_or_insert(bytes).clone(),
            Way::AllButTheLast => drop(bytes.pop()),
            Way::Honest | Way::CannotFill | Way::FillsHalf => {}
        }
        self.put(&bytes, self.scratch.destination());
        Ok(())
    }

    fn fill(&mut self, value: u32) -> Result<(), ProviderError> {
        let words = match self.way {
            Way::CannotFill => 0,
            Way::FillsHalf => GRAIN / 8,
            _ => GRAIN / 4,
        };
        let bytes: Vec<u8> = (0..words).flat_map(|_| value.to_le_bytes()).collect();
        self.put(&bytes, self.scratch.source());
        Ok(())
    }
}

#[test]
fn a_driver_is_believed_when_the_bytes_are_there() {
    let expect = |way, expected: Result<(), &str>| {
        let scratch = Scratch::new(GRAIN).unwrap();
        let mut driver = Driver {
            scratch: &scratch,
            way,
            first: None,
        };
        let found = scratch.exercise(&mut driver).map_err(|why| why.to_string());
        match (&found, expected) {
            (Ok(()), Ok(())) => {}
            (Err(found), Err(expected)) if found.contains(expected) => {}
            _ => panic!("{way:?}: {found:?}, not {expected:?}"),
        }
    };
    expect(Way::Honest, Ok(()));
    expect(
        Way::Nothing,
        Err("WRONG BYTES: after a copy by the GPU, 40"),
    );
    expect(Way::OldBytes, Err("WRONG BYTES: after a copy by the GPU"));
    expect(
        Way::AllButTheLast,
        Err("a copy by the GPU, 1 of 4096 bytes differ"),
    );
    expect(Way::CannotFill, Err("WRONG BYTES: after a fill by the GPU"));
    expect(
        Way::FillsHalf,
        Err("WRONG BYTES: after a fill by the GPU, 20"),
    );
    expect(Way::Refuses, Err("refused: "));
}
