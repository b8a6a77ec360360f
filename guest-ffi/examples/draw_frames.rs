//! Draws frames for a process on the host to look at: `draw_frames [FRAMES] [pool]`.
//!
//! Double buffering: two buffers, and the next frame is drawn into the one that nobody looks at. They are two memories, each with a descriptor of
//! its own on the host; with `pool`, two offsets in one memory. The other side are the examples of `hostblob-export`.

use std::error::Error;
use std::time::Duration;

use hostblob_guest::{
    AllocateInfo, BufferInfo, BufferPool, Device, Memory, OpenOptions, PoolBuffer,
};

const WIDTH: u32 = 640;
const HEIGHT: u32 = 480;
const STRIDE: u32 = 4 * WIDTH;
/// `DRM_FORMAT_XRGB8888`.
const XR24: u32 = 0x3432_5258;
const PATIENCE: Duration = Duration::from_secs(60);

/// A buffer, wherever it is.
enum Buffer {
    Memory(Memory),
    Pool(PoolBuffer),
}

impl Buffer {
    fn show(&self, picture: &[u8]) -> hostblob_guest::Result<()> {
        match self {
            Self::Memory(memory) => {
                memory.wait_released(0, Some(PATIENCE))?;
                memory.write(0, picture)?;
                memory.present(0)
            }
            Self::Pool(buffer) => {
                buffer.wait_released(Some(PATIENCE))?;
                buffer.write(0, picture)?;
                buffer.present()
            }
        }
    }
}

fn memory(device: &Device) -> hostblob_guest::Result<Buffer> {
    let size = u64::from(STRIDE) * u64::from(HEIGHT);
    let info = AllocateInfo::new(size)
        .shareable()
        .dedicated()
        .name("frame");
    let memory = device.allocate(&info)?;
    memory.publish(&BufferInfo {
        offset: 0,
        width: WIDTH,
        height: HEIGHT,
        stride: STRIDE,
        fourcc: XR24,
        modifier: 0,
    })?;
    Ok(Buffer::Memory(memory))
}

/// Two ramps of colour that move with the frame.
fn picture(frame: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let [red, ..] = (x + 8 * frame).to_le_bytes();
            let [green, ..] = (y + 4 * frame).to_le_bytes();
            bytes.extend([0x40, green, red, 0]);
        }
    }
    bytes
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let frames = arguments.next().map_or(Ok(60), |text| text.parse())?;
    let in_pool = arguments.next().as_deref() == Some("pool");
    let device = Device::open(&OpenOptions::default())?;
    let pool;
    let buffers = if in_pool {
        pool = BufferPool::new(&device, 2 * u64::from(STRIDE) * u64::from(HEIGHT))?;
        [(); 2].map(|()| pool.allocate(WIDTH, HEIGHT, 4, XR24).map(Buffer::Pool))
    } else {
        [(); 2].map(|()| memory(&device))
    };
    let [front, back] = buffers;
    let buffers = [front?, back?];
    println!("two buffers of {WIDTH} x {HEIGHT} can be seen");
    for (frame, buffer) in (0..frames).zip(buffers.iter().cycle()) {
        buffer.show(&picture(frame))?;
        std::thread::sleep(Duration::from_millis(16));
    }
    println!("{frames} frames were presented");
    Ok(())
}
