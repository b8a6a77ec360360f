//! `virgl`: a context of virglrenderer beside one of ours. Bytes go to a buffer of the host's OpenGL, and come back.

use anyhow::{Result, ensure};
use hostblob_tests::raw::{Node, PARAM_CAPSET_ID};

const CAPSET_VIRGL2: u64 = 2;
const SIZE: u32 = 65536;

fn main() -> Result<()> {
    let ours = Node::open()?;
    let blob = ours.create(SIZE.into())?;
    let bytes = ours.map(&blob)?;
    bytes.store(0, 1);

    let virgl = Node::open_with(&[(PARAM_CAPSET_ID, CAPSET_VIRGL2)])?;
    let buffer = virgl.create_3d_buffer(SIZE)?;
    let pages = virgl.map(&buffer)?;
    for index in 0..pages.words() {
        pages.store(index, !(index as u64));
    }
    virgl.to_host(&buffer, 0, 0, SIZE)?;
    for index in 0..pages.words() {
        pages.store(index, 0);
    }
    virgl.from_host(&buffer, 4096, 4096, SIZE - 4096)?;
    for index in 0..pages.words() {
        let expected = if index < 512 { 0 } else { !(index as u64) };
        ensure!(pages.load(index) == expected, "word {index}");
    }
    ensure!(bytes.load(0) == 1, "our blob has changed");
    println!("{SIZE} bytes through a buffer of virglrenderer");
    Ok(())
}
