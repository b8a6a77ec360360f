//! One connection: its threads, and their end.
//!
//! The threads end when the VMM disconnects, when it breaks the protocol, and when the daemon ends: the socket is shut down, which ends a wait
//! for a message, whole or half. One that is stuck in a descriptor of the VMM is ended by signals.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown as Direction;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex as StdMutex};

use hostblob_capset::WindowMode;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};

use super::channel::{Channel, Mapper};
use super::messages::Backend;
use super::signals::Signals;
use crate::shutdown::Shutdown;
use crate::transport::engine::Engine;
use crate::transport::snapshot::{Saves, Snapshots};
use crate::transport::threads::{self, Ended};
use crate::transport::{Device, LateWindow, TransportError, Wake};

/// Serves the connection until it ends or the daemon does.
pub(super) fn run<D: Device>(
    stream: UnixStream,
    device: D,
    wake: Arc<Wake>,
    shutdown: &Shutdown,
    snapshots: &Snapshots,
) -> Result<(), TransportError> {
    let system = |what| move |error| TransportError::System(what, error);
    threads::prepare().map_err(system("signal handler"))?;
    let window = device.window_fd().try_clone_to_owned();
    let window = window.map_err(system("the window's file"))?;
    let socket = stream.try_clone().map_err(system("the connection"))?;
    let peeked = stream.try_clone().map_err(system("the connection"))?;
    let channel = Arc::<Channel>::default();
    let mut mapper = Mapper::new(Arc::clone(&channel), window);
    let (window_mode, window_size) = (device.window_mode(), device.window_size());
    let engine = Arc::new(Engine::new(
        device,
        wake,
        Signals::new(Arc::clone(&channel)),
    ));
    engine.set_bus_master(true);
    let backend = Backend::new(Arc::clone(&engine), Arc::clone(&channel));
    if let Some(held) = snapshots.take_held()
        && let Err(error) = engine.install(held)
    {
        log::error!("what the restored queues held is lost: {error}");
    }
    let _registered = snapshots.register(Arc::clone(&engine) as Arc<dyn Saves>);
    let ended = Ended::new().map_err(system("eventfd"))?;

    let queues = ended.spawn("hostblob-queues", {
        let engine = Arc::clone(&engine);
        move || {
            let window = match window_mode {
                WindowMode::Premapped => LateWindow::whole(&mut mapper, window_size),
                WindowMode::OnDemand => Ok(LateWindow::on_demand(&mut mapper)),
            };
            match window {
                Ok(mut window) => engine.run_with(&mut window),
                Err(error) => log::error!("the window cannot be mapped: {error}"),
            }
        }
    });
    let queues = queues.map_err(system("a thread for the queues"))?;
    let messages = ended.spawn("hostblob-vhost", move || {
        let backend = Arc::new(StdMutex::new(backend));
        let handler = BackendReqHandler::from_stream(socket, Arc::clone(&backend));
        match serve_messages(&peeked, handler, &backend) {
            Ok(()) => log::info!("the VMM disconnected"),
            Err(error) => log::warn!("the connection to the VMM ended: {error}"),
        }
    });
    if messages.is_ok() {
        ended.wait(shutdown);
    }
    // Fails when the VMM has ended it already.
    let _ = stream.shutdown(Direction::Both);
    channel.close();
    engine.stop();
    // The message thread first: it ends a transfer of the state, which holds the device, and the queue thread may wait for that.
    let messages = messages.map(|messages| {
        threads::end_and_join(messages, "message", threads::GRACE);
    });
    threads::end_and_join(queues, "queue", threads::GRACE);
    messages.map_err(system("a thread for messages"))
}

fn serve_messages<D: Device>(
    stream: &UnixStream,
    mut handler: BackendReqHandler<StdMutex<Backend<D>>>,
    backend: &StdMutex<Backend<D>>,
) -> Result<(), ProtocolError> {
    loop {
        let Some(request) = peek_request(stream).map_err(ProtocolError::SocketError)? else {
            return Ok(());
        };
        if request == u32::from(FrontendReq::SET_BACKEND_REQ_FD) {
            let socket = peek_descriptor(stream).map_err(ProtocolError::SocketError)?;
            // Poisoned only by a panic of this thread.
            if let (Ok(mut backend), Some(socket)) = (backend.lock(), socket) {
                backend.offer_channel(UnixStream::from(socket));
            }
        }
        handler.handle_request()?;
    }
}

/// Waits for a message and looks which one it is, leaving it where it is. `None` when the VMM has disconnected.
fn peek_request(stream: &UnixStream) -> io::Result<Option<u32>> {
    let mut code = [0; 4];
    loop {
        return match rustix::net::recv(stream, &mut code, RecvFlags::PEEK) {
            Ok((_, 0)) => Ok(None),
            // Of less than a word the beginning says nothing: the handler waits for the rest.
            Ok((_, length)) if length < code.len() => Ok(Some(0)),
            Ok(_) => Ok(Some(u32::from_ne_bytes(code))),
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::CONNRESET) => Ok(None),
            Err(error) => Err(error.into()),
        };
    }
}

/// A copy of the descriptor of the message that waits. The crate gives out no descriptor for the channel, and without one nobody can end a wait
/// for a reply on it.
fn peek_descriptor(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut header = [0; 12];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut to = [IoSliceMut::new(&mut header)];
    let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(stream, &mut to, &mut control, flags)?;
    Ok(control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        })
        .next())
}
