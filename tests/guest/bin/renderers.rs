//! `renderers`: our context, 2D resources and a Wayland client in one guest at the same time. Ends when the host's compositor does.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hostblob_tests::cross_domain::{self, Channel};
use hostblob_tests::raw::Node;
use hostblob_tests::wayland::Client;

const WIDTH: u32 = 256;
const HEIGHT: u32 = 128;
/// The unused byte is not 0: the compositor's screenshot takes it for how much of the color is there.
const RED: u64 = 0xffff_0000;
const BLUE: u64 = 0xff00_80ff;
const SIZE: u64 = 1 << 20;

fn main() -> Result<()> {
    // Ours.
    let ours = Node::open()?;
    let blob = ours.create(SIZE)?;
    let bytes = ours.map(&blob)?;
    for index in 0..bytes.words() {
        bytes.store(index, !(index as u64));
    }
    let unchanged = || (0..bytes.words()).all(|index| bytes.load(index) == !(index as u64));

    // 2D: a buffer of our own, and the screen, which is one of the kernel's.
    let card = Node::open_card()?;
    let (dumb, pitch) = card.create_dumb(64, 32)?;
    ensure!(pitch == 256 && dumb.size >= 8192, "{pitch}, {dumb:?}");
    draw_on_the_screen()?;
    println!("drawn on the screen");

    // Wayland.
    let channel = Arc::new(Channel::open()?);
    let (socket, proxy) = channel.socket()?;
    let mut client = Client::connect(socket)?;
    let globals = client.globals().join(" ");
    println!("globals: {globals}");
    // Two buffers, one after the other.
    let image = channel.image(WIDTH, 2 * HEIGHT, *b"XR24")?;
    ensure!(
        image.pixels.first_not_zero().is_none(),
        "the image is not new"
    );
    println!(
        "an image of {} bytes, rows of {}",
        image.blob.size, image.stride
    );
    for row in 0..2 * HEIGHT {
        let color = if row < HEIGHT { RED } else { BLUE };
        for pair in 0..WIDTH / 2 {
            let at = (row * image.stride / 8 + pair) as usize;
            image.pixels.store(at, color << 32 | color);
        }
    }
    let pool = channel.node().export(&image.blob)?;
    let [width, height, stride] = [WIDTH, HEIGHT, image.stride].map(|side| side as i32);
    let window = client.window(&pool, width, height, stride)?;
    println!("a window");
    client.show(&window, 0)?;
    println!("one frame shown");
    client.show(&window, 1)?;
    client.wait_released(0)?;
    println!("two frames shown");

    // Nonsense of one does not disturb the others.
    let nonsense = Channel::open()?;
    for bytes in [vec![0; 64], cross_domain::command(1, &[0, 0, 1], &[])] {
        nonsense.node().submit(&bytes, None)?;
    }
    drop(nonsense);
    ensure!(unchanged(), "our blob has changed");
    client.show(&window, 0)?;
    client.wait_released(1)?;
    client.show(&window, 1)?;
    println!("all three at once");

    client.wait_for_the_end()?;
    let ended = proxy.join();
    ensure!(matches!(ended, Ok(Ok(()))), "the proxy: {ended:?}");
    println!("the compositor has gone");
    ensure!(unchanged(), "our blob has changed");
    let again = ours.create(SIZE)?;
    ensure!(ours.map(&again)?.first_not_zero().is_none(), "not zeros");
    card.close(dumb)?;
    println!("ours goes on");
    Ok(())
}

/// The lower half; the console has the upper one.
fn draw_on_the_screen() -> Result<()> {
    std::fs::write("/dev/tty0", "A guest of hostblob.\n").context("/dev/tty0")?;
    let screen = OpenOptions::new().write(true).open("/dev/fb0");
    let mut screen = screen.context("/dev/fb0")?;
    let row: Vec<u8> = (0..640_u32).flat_map(|x| (x * 3).to_le_bytes()).collect();
    for y in 240..480 {
        screen.write_all_at(&row, y * 2560)?;
    }
    screen.flush()?;
    Ok(())
}
