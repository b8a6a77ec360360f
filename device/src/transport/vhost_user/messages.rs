//! The messages of the VMM, each checked and done.
//!
//! Rules:
//! - No message waits for the queue thread, but for the one step that it is at: the VMM may be waiting for us while the queue thread waits for the
//!   VMM.
//! - A message that is refused ends the connection, as the crate does it. Nothing was changed by then.
//! - A queue runs when everything about it has been said, in whatever order.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures as Features,
    VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags,
    VhostUserVringState,
};
use vhost::vhost_user::{
    Backend as BackendChannel, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};

use super::channel::{Channel, WINDOW_REGION};
use super::memory::MemoryTable;
use super::registers::{Parts, Registers};
use super::signals::Signals;
use super::state::Transfer;
use crate::transport::Device;
use crate::transport::engine::Engine;
use crate::transport::vfio_user::dma::MAX_RANGES;
use crate::virtqueue::{F_EVENT_IDX, QUEUES, offered_features};

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// The queue that every command but the cursor's comes on.
const CONTROL_QUEUE: u32 = 0;

/// What the messages here serve. `REPLY_ACK` is the crate's.
pub(super) const PROTOCOL_FEATURES: Features = Features::CONFIG
    .union(Features::MQ)
    .union(Features::BACKEND_REQ)
    .union(Features::BACKEND_SEND_FD)
    .union(Features::REPLY_ACK)
    .union(Features::SHMEM)
    .union(Features::CONFIGURE_MEM_SLOTS)
    .union(Features::DEVICE_STATE)
    .union(Features::SHARED_OBJECT)
    .union(Features::RESET_DEVICE);

/// What mapping the window needs of a VMM.
const FOR_THE_WINDOW: Features = Features::SHMEM
    .union(Features::BACKEND_REQ)
    .union(Features::REPLY_ACK);

/// What telling a VMM of shared objects, and asking it for those of others, needs of it.
const FOR_OBJECTS: Features = Features::SHARED_OBJECT.union(Features::BACKEND_REQ);

/// One VMM's device.
pub(super) struct Backend<D> {
    engine: Arc<Engine<D, Signals>>,
    channel: Arc<Channel>,
    /// A copy of the channel's socket, until the message that brings it has been checked.
    offered_channel: Option<UnixStream>,
    memory: MemoryTable,
    queues: [Registers; QUEUES],
    offered: u64,
    acked: u64,
    protocol: Features,
    config: Vec<u8>,
    window_size: u64,
    /// A queue has run since the last reset, or the device was restored.
    used: bool,
    /// Of the device's state, until the VMM has asked how it went.
    transfer: Option<Transfer>,
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::ReqHandlerError(io::Error::other(error.to_string()))
}

impl<D: Device> Backend<D> {
    pub(super) fn new(engine: Arc<Engine<D, Signals>>, channel: Arc<Channel>) -> Self {
        let (features, config, window_size, is_new) = engine.with_device(|device| {
            (
                device.features(),
                device.config().to_vec(),
                device.window_size(),
                device.is_new(),
            )
        });
        Self {
            engine,
            channel,
            offered_channel: None,
            memory: MemoryTable::default(),
            queues: Default::default(),
            offered: offered_features(features) | F_PROTOCOL_FEATURES,
            acked: 0,
            protocol: Features::empty(),
            config,
            window_size,
            used: !is_new,
            transfer: None,
        }
    }

    /// The socket that the next message brings, if it brings one.
    pub(super) fn offer_channel(&mut self, socket: UnixStream) {
        self.offered_channel = Some(socket);
    }

    fn queue(&mut self, index: u32) -> Result<(u16, &mut Registers)> {
        let small = u16::try_from(index).map_err(|_| Error::InvalidParam)?;
        let registers = self.queues.get_mut(usize::from(small));
        registers
            .map(|registers| (small, registers))
            .ok_or_else(|| refused(format_args!("there is no queue {index}")))
    }

    /// Changes a queue, which does not run meanwhile.
    fn change(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut Registers) -> Result<()>,
    ) -> Result<()> {
        self.pause(index)?;
        let (_, registers) = self.queue(index)?;
        change(registers)?;
        self.resume(index)?;
        self.tell_channel();
        Ok(())
    }

    /// Whether requests may be sent to the VMM.
    fn tell_channel(&self) {
        let runs = self.queues.iter().any(|queue| queue.running);
        self.channel.set_stopped(!runs);
    }

    fn pause(&mut self, index: u32) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        let (index, registers) = self.queue(index)?;
        if std::mem::take(&mut registers.running) {
            // A queue that broke is where it was.
            registers.base = engine.stop_queue(index).unwrap_or(registers.base);
        }
        Ok(())
    }

    /// Lets the queue run if all has been said about it.
    fn resume(&mut self, index: u32) -> Result<()> {
        let event_idx = self.acked & F_EVENT_IDX != 0;
        let (_, registers) = self.queue(index)?;
        if registers.running || !registers.complete() {
            return Ok(());
        }
        self.give_up_transfer();
        let memory = self.memory.memory();
        let (small, registers) = self.queue(index)?;
        let queue = registers.queue(&memory, event_idx);
        let queue = queue.map_err(|bad| refused(format_args!("queue {index}: {bad}")))?;
        registers.running = true;
        self.used = true;
        self.engine.start_queue(small, queue);
        Ok(())
    }

    fn all(&mut self, mut f: impl FnMut(&mut Self, u32) -> Result<()>) -> Result<()> {
        (0..).take(QUEUES).try_for_each(|index| f(self, index))
    }

    /// A driver begins with its queue from the beginning: the one before it is gone with all that it had.
    ///
    /// No VMM says so: crosvm has no message for a reset, and QEMU 11.1 agrees on RESET_DEVICE and never sends it. A VM that was
    /// stopped goes on where its queue was. (One that is stopped after exactly 65536 commands, or a multiple, is taken for a new one.)
    fn start_anew(&mut self) -> Result<()> {
        log::debug!("the driver starts anew: the device is reset");
        self.give_up_transfer();
        self.all(Self::pause)?;
        self.used = false;
        self.engine.reset();
        self.all(Self::resume)
    }

    /// Before the device is used otherwise: it waits for a transfer, and that may wait for the VMM.
    fn give_up_transfer(&self) {
        if let Some(transfer) = &self.transfer {
            transfer.give_up();
        }
    }

    /// The device, unless a transfer has it: that may wait for the VMM, and the VMM must not make this thread wait for itself.
    fn with_device<R>(&self, f: impl FnOnce(&mut D) -> R) -> Result<R> {
        if self.is_transferring() {
            return Err(refused("a transfer of the device's state is under way"));
        }
        Ok(self.engine.with_device(f))
    }

    fn is_transferring(&self) -> bool {
        let transfer = self.transfer.as_ref();
        transfer.is_some_and(|transfer| !transfer.is_finished())
    }

    /// Nothing of the guest is left.
    fn reset(&mut self) {
        self.give_up_transfer();
        self.queues = Default::default();
        self.used = false;
        self.tell_channel();
        self.engine.reset();
    }

    fn memory_changed(&self) {
        self.engine.set_memory(self.memory.memory());
        self.channel.memory_changed();
    }
}

impl<D> Drop for Backend<D> {
    fn drop(&mut self) {
        if let Some(transfer) = &self.transfer {
            transfer.give_up();
        }
    }
}

impl<D: Device> VhostUserBackendReqHandlerMut for Backend<D> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        log::debug!("the VMM resets the device");
        self.reset();
        self.acked = 0;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered != 0 {
            return Err(refused(format_args!(
                "feature bits {:#x} were not offered",
                features & !self.offered
            )));
        }
        self.all(Self::pause)?;
        self.acked = features;
        if features & F_PROTOCOL_FEATURES == 0 {
            // There is no SET_VRING_ENABLE then.
            self.queues
                .iter_mut()
                .for_each(|queue| queue.enabled = true);
        }
        self.all(Self::resume)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.memory = MemoryTable::new(regions, files).map_err(refused)?;
        self.memory_changed();
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.change(index, |queue| queue.set_size(num).map_err(refused))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let translate = |address| {
            let guest = self.memory.guest_address(address);
            guest.ok_or_else(|| {
                refused(format_args!(
                    "queue {index}: {address:#x} is not in guest memory"
                ))
            })
        };
        let parts = Parts {
            descriptors: translate(descriptor)?,
            available: translate(available)?,
            used: translate(used)?,
        };
        self.change(index, |queue| {
            queue.set_parts(parts);
            Ok(())
        })
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        if index == CONTROL_QUEUE && base == 0 && self.used && !self.queue(index)?.1.started {
            self.start_anew()?;
        }
        self.change(index, |queue| queue.set_base(base).map_err(refused))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.pause(index)?;
        self.tell_channel();
        let (_, queue) = self.queue(index)?;
        queue.started = false;
        let state = VhostUserVringState::new(index, queue.base.into());
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let signals = &self.engine.interrupts;
        signals.set_kick(at, None).map_err(refused)?;
        signals.set_call(at, None).map_err(refused)?;
        self.engine.wake();
        Ok(state)
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.queue(index.into())?;
        let signals = &self.engine.interrupts;
        signals
            .set_kick(index.into(), file)
            .map_err(|error| refused(format_args!("the kick of queue {index}: {error}")))?;
        // The queue thread has to wait for the new one.
        self.engine.wake();
        self.change(index.into(), |queue| {
            queue.started = true;
            Ok(())
        })
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.queue(index.into())?;
        let signals = &self.engine.interrupts;
        signals
            .set_call(index.into(), file)
            .map_err(|error| refused(format_args!("the call of queue {index}: {error}")))
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.queue(index.into())?;
        let signals = &self.engine.interrupts;
        signals.set_error(index.into(), file).map_err(|error| {
            refused(format_args!(
                "the error descriptor of queue {index}: {error}"
            ))
        })
    }

    fn get_protocol_features(&mut self) -> Result<Features> {
        Ok(PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !PROTOCOL_FEATURES.bits() != 0 {
            return Err(refused(format_args!(
                "protocol feature bits {:#x} were not offered",
                features & !PROTOCOL_FEATURES.bits()
            )));
        }
        self.protocol = Features::from_bits_truncate(features);
        let usable = self.protocol.contains(FOR_THE_WINDOW);
        if !usable {
            log::warn!(
                "the VMM lacks {:?}: its guest sees the device, but mapping a blob will be refused. crosvm and \
                 vhost-user-test-device-pci of QEMU 11 have it; vhost-user-gpu-pci does not",
                FOR_THE_WINDOW - self.protocol
            );
        }
        self.channel.set_usable(usable);
        self.channel
            .set_sharing(self.protocol.contains(FOR_OBJECTS));
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUES as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.change(index, |queue| {
            queue.enabled = enable;
            Ok(())
        })
    }

    /// What is past the end reads as zeros: drivers of a newer specification look there.
    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        // The crate has checked that both are small.
        let skip = usize::try_from(offset).map_err(|_| Error::InvalidParam)?;
        let take = usize::try_from(size).map_err(|_| Error::InvalidParam)?;
        let bytes = self.config.iter().copied().chain(std::iter::repeat(0));
        Ok(bytes.skip(skip).take(take).collect())
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.with_device(|device| device.write_config(offset.into(), data))
    }

    /// The crate's end of the channel is closed: it can only wait for ever.
    fn set_backend_req_fd(&mut self, _channel: BackendChannel) {
        match self.offered_channel.take() {
            Some(socket) => self.channel.set_socket(socket),
            None => log::warn!("the VMM sent its channel in pieces: it is not used"),
        }
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        Err(refused("the device has no displays"))
    }

    fn get_shared_object(&mut self, asked: VhostUserSharedMsg) -> Result<File> {
        let uuid = asked.uuid.into_bytes();
        let found = self.with_device(|device| {
            let descriptor = device.shared_object(uuid)?;
            descriptor.try_clone()
        })?;
        found.map(File::from).map_err(|error| {
            log::warn!("shared object {}: {error}", asked.uuid);
            refused(error)
        })
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("INFLIGHT_SHMFD is not offered"))
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(Error::InvalidOperation("INFLIGHT_SHMFD is not offered"))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_RANGES as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        self.memory.add(region, file).map_err(refused)?;
        self.memory_changed();
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.memory.remove(region).map_err(refused)?;
        self.memory_changed();
        Ok(())
    }

    /// The VMM's own descriptor is used: none is offered in its place.
    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        _only_stopped: VhostTransferStatePhase,
        file: File,
    ) -> Result<Option<File>> {
        let why = if !self.protocol.contains(Features::DEVICE_STATE) {
            Some("DEVICE_STATE was not agreed on")
        } else if self.queues.iter().any(|queue| queue.running) {
            Some("the queues run")
        } else if self.is_transferring() {
            Some("another transfer is under way")
        } else {
            None
        };
        if let Some(why) = why {
            log::warn!("the VMM asks for the device's state: {why}");
            return Err(refused(why));
        }
        let engine = Arc::clone(&self.engine);
        self.transfer = Some(Transfer::begin(engine, direction, file).map_err(refused)?);
        // What was restored belongs to a queue that does not begin anew.
        self.used |= direction == VhostTransferStateDirection::LOAD;
        Ok(None)
    }

    fn check_device_state(&mut self) -> Result<()> {
        let transfer = self.transfer.take();
        let transfer = transfer.ok_or_else(|| refused("no transfer was begun"))?;
        transfer.check(|| self.engine.stopping()).map_err(refused)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        let mut sizes = [0; WINDOW_REGION as usize + 1];
        if let Some(size) = sizes.last_mut() {
            *size = self.window_size;
        }
        Ok(VhostUserShMemConfig::new(1, &sizes))
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidOperation("LOG_SHMFD is not offered"))
    }
}
