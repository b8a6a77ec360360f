//! A Wayland client with one window, whose pixels are memory of the host's compositor.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result, ensure};
use wayland_client::protocol::{
    wl_buffer, wl_callback, wl_compositor, wl_registry, wl_shm, wl_shm_pool, wl_surface,
};
use wayland_client::{Connection, Dispatch, EventQueue, Proxy, QueueHandle, delegate_noop};
use wayland_protocols::xdg::shell::client::{xdg_surface, xdg_toplevel, xdg_wm_base};

/// What has happened.
#[derive(Debug, Default)]
struct State {
    /// Name, interface, version.
    globals: Vec<(u32, String, u32)>,
    configured: bool,
    frames: u32,
    /// Buffers that the compositor no longer uses, by number.
    released: Vec<usize>,
}

/// A client that is connected, and knows what there is.
#[derive(Debug)]
pub struct Client {
    queue: EventQueue<State>,
    state: State,
    registry: wl_registry::WlRegistry,
}

/// A window and its two buffers, which are one after the other in a pool.
#[derive(Debug)]
pub struct Window {
    surface: wl_surface::WlSurface,
    size: (i32, i32),
    buffers: [wl_buffer::WlBuffer; 2],
}

impl Client {
    /// Asks for the registry.
    pub fn connect(socket: UnixStream) -> Result<Self> {
        let connection = Connection::from_socket(socket)?;
        let mut queue = connection.new_event_queue();
        let registry = connection.display().get_registry(&queue.handle(), ());
        let mut state = State::default();
        queue.roundtrip(&mut state).context("the registry")?;
        Ok(Self {
            queue,
            state,
            registry,
        })
    }

    /// The interfaces that the compositor has.
    pub fn globals(&self) -> Vec<&str> {
        let globals = self.state.globals.iter();
        globals
            .map(|(_, interface, _)| interface.as_str())
            .collect()
    }

    fn bind<I: Proxy + 'static>(&self) -> Result<I>
    where
        State: Dispatch<I, ()>,
    {
        let wanted = I::interface().name;
        let mut globals = self.state.globals.iter();
        let global = globals.find(|(_, interface, _)| interface == wanted);
        let (name, _, version) = global.with_context(|| format!("no {wanted}"))?;
        let version = (*version).min(I::interface().version);
        let registry = &self.registry;
        Ok(registry.bind(*name, version, &self.queue.handle(), ()))
    }

    /// A window of XRGB8888 pixels, two buffers of which are in `pool`.
    pub fn window(
        &mut self,
        pool: impl AsFd,
        width: i32,
        height: i32,
        stride: i32,
    ) -> Result<Window> {
        let handle = self.queue.handle();
        let compositor: wl_compositor::WlCompositor = self.bind()?;
        let shm: wl_shm::WlShm = self.bind()?;
        let wm: xdg_wm_base::XdgWmBase = self.bind()?;
        let size = stride * height;
        let pool = shm.create_pool(pool.as_fd(), 2 * size, &handle, ());
        let format = wl_shm::Format::Xrgb8888;
        let buffers = [0, 1].map(|number| {
            let offset = size * i32::try_from(number).unwrap_or(0);
            pool.create_buffer(offset, width, height, stride, format, &handle, number)
        });
        pool.destroy();
        let surface = compositor.create_surface(&handle, ());
        let role = wm.get_xdg_surface(&surface, &handle, ());
        let toplevel = role.get_toplevel(&handle, ());
        toplevel.set_title("a guest of hostblob".to_owned());
        surface.commit();
        while !self.state.configured {
            self.dispatch()?;
        }
        Ok(Window {
            surface,
            size: (width, height),
            buffers,
        })
    }

    /// Shows a buffer: returns when the compositor has drawn it.
    pub fn show(&mut self, window: &Window, number: usize) -> Result<()> {
        let frame = self.state.frames;
        window.surface.attach(Some(&window.buffers[number]), 0, 0);
        let (width, height) = window.size;
        window.surface.damage(0, 0, width, height);
        window.surface.frame(&self.queue.handle(), ());
        window.surface.commit();
        while self.state.frames == frame {
            self.dispatch()?;
        }
        Ok(())
    }

    /// Waits until the compositor no longer uses a buffer.
    pub fn wait_released(&mut self, number: usize) -> Result<()> {
        while !self.state.released.contains(&number) {
            self.dispatch()?;
        }
        Ok(())
    }

    /// Waits for the end of the connection.
    pub fn wait_for_the_end(&mut self) -> Result<()> {
        while self.dispatch().is_ok() {}
        ensure!(self.dispatch().is_err(), "the connection goes on");
        Ok(())
    }

    fn dispatch(&mut self) -> Result<()> {
        self.queue
            .blocking_dispatch(&mut self.state)
            .context("the compositor")?;
        Ok(())
    }
}

impl Dispatch<wl_registry::WlRegistry, ()> for State {
    fn event(
        state: &mut Self,
        _: &wl_registry::WlRegistry,
        event: wl_registry::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        if let wl_registry::Event::Global {
            name,
            interface,
            version,
        } = event
        {
            state.globals.push((name, interface, version));
        }
    }
}

impl Dispatch<xdg_wm_base::XdgWmBase, ()> for State {
    fn event(
        _: &mut Self,
        wm: &xdg_wm_base::XdgWmBase,
        event: xdg_wm_base::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        if let xdg_wm_base::Event::Ping { serial } = event {
            wm.pong(serial);
        }
    }
}

impl Dispatch<xdg_surface::XdgSurface, ()> for State {
    fn event(
        state: &mut Self,
        surface: &xdg_surface::XdgSurface,
        event: xdg_surface::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        if let xdg_surface::Event::Configure { serial } = event {
            surface.ack_configure(serial);
            state.configured = true;
        }
    }
}

impl Dispatch<wl_callback::WlCallback, ()> for State {
    fn event(
        state: &mut Self,
        _: &wl_callback::WlCallback,
        event: wl_callback::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        if let wl_callback::Event::Done { .. } = event {
            state.frames += 1;
        }
    }
}

impl Dispatch<wl_buffer::WlBuffer, usize> for State {
    fn event(
        state: &mut Self,
        _: &wl_buffer::WlBuffer,
        event: wl_buffer::Event,
        number: &usize,
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        if let wl_buffer::Event::Release = event {
            state.released.push(*number);
        }
    }
}

delegate_noop!(State: wl_compositor::WlCompositor);
delegate_noop!(State: ignore wl_shm::WlShm);
delegate_noop!(State: wl_shm_pool::WlShmPool);
delegate_noop!(State: ignore wl_surface::WlSurface);
delegate_noop!(State: ignore xdg_toplevel::XdgToplevel);
