//! The queues and the guest's memory: what the engine does under its first lock. Nothing here waits, or calls anybody.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::gpu::Response;
use crate::ratelimit::RateLimiter;
use crate::transport::snapshot::{Held, HeldResponse};
use crate::virtqueue::{Broken, Next, QUEUE_SIZE, QUEUES, Ring};

/// A queue, where there is one.
type Slot = Option<(Queue, Ring)>;

/// A command's name while the device has it: generation, queue, head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) generation: u32,
    pub(super) queue: u16,
    pub(super) head: u16,
}

impl Tag {
    pub(super) fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.queue) << 16 | u64::from(self.head)
    }

    pub(super) fn unpack(tag: u64) -> Self {
        let [h0, h1, q0, q1, g0, g1, g2, g3] = tag.to_le_bytes();
        Self {
            generation: u32::from_le_bytes([g0, g1, g2, g3]),
            queue: u16::from_le_bytes([q0, q1]),
            head: u16::from_le_bytes([h0, h1]),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Rings {
    pub(super) memory: GuestMemoryMmap,
    queues: [Slot; QUEUES],
    /// Queues that the VMM stopped, with the chains that the device still holds: a VM that sleeps and wakes goes on with them.
    stopped: [Slot; QUEUES],
    /// Responses to chains of stopped queues.
    parked: Vec<(Tag, Response)>,
    /// Without it the function must not reach guest memory.
    pub(super) bus_master: bool,
    /// The device has not seen this memory yet.
    pub(super) memory_changed: bool,
    /// How many want that no command is taken.
    pub(super) paused: usize,
    /// Of each queue, over all its starts: a guest that resets the device again and again would fill the log otherwise.
    logs: [RateLimiter; QUEUES],
}

/// A queue that was started.
pub(super) struct Started {
    /// Responses that came while it was stopped.
    pub(super) parked: Vec<(Tag, Response)>,
    /// Whether it goes on where it was stopped.
    pub(super) goes_on: bool,
}

impl Rings {
    /// All queues, as the driver set them up.
    pub(super) fn set(&mut self, queues: [Option<Queue>; QUEUES]) {
        let mut indices = 0..;
        self.queues = queues.map(|queue| {
            let ring = indices.next().map(Ring::new);
            queue.zip(ring)
        });
    }

    /// One queue. Where it goes on it keeps its chains; where it does not, what was parked for it is dropped.
    pub(super) fn start(&mut self, index: u16, queue: Queue) -> Option<Started> {
        let at = usize::from(index);
        let (slot, stopped) = (self.queues.get_mut(at)?, self.stopped.get_mut(at)?);
        let of_queue = |(tag, _): &mut (Tag, Response)| tag.queue == index;
        let mut started = Started {
            parked: self.parked.extract_if(.., of_queue).collect(),
            goes_on: false,
        };
        let ring = match stopped.take() {
            Some((before, ring)) if before.next_avail() == queue.next_avail() => {
                started.goes_on = true;
                ring
            }
            _ => {
                started.parked.clear();
                Ring::new(index)
            }
        };
        *slot = Some((queue, ring));
        Some(started)
    }

    /// Where the driver's next chain will be; `None` if it does not run.
    pub(super) fn stop(&mut self, index: u16) -> Option<u16> {
        let (queue, ring) = self.queues.get_mut(usize::from(index))?.take()?;
        let next = queue.next_avail();
        *self.stopped.get_mut(usize::from(index))? = Some((queue, ring));
        Some(next)
    }

    /// No queue runs, is stopped, or has anything parked. What was there is for whoever drops it, without the lock.
    pub(super) fn clear(&mut self) -> impl Sized + use<> {
        (
            std::mem::take(&mut self.parked),
            std::mem::take(&mut self.queues),
            std::mem::take(&mut self.stopped),
        )
    }

    /// Whether a queue runs.
    pub(super) fn any_runs(&self) -> bool {
        self.queues.iter().any(Option::is_some)
    }

    /// Commands that were taken and have no response yet.
    pub(super) fn under_way(&self) -> usize {
        let held = |slot: &Slot| slot.as_ref().map_or(0, |(_, ring)| ring.held());
        let all: usize = self.queues.iter().chain(&self.stopped).map(held).sum();
        all.saturating_sub(self.parked.len())
    }

    /// What stopped queues hold, all with their responses.
    pub(super) fn held(&self) -> Held {
        let queues = (0..).zip(&self.stopped).filter_map(|(index, slot)| {
            let (queue, _) = slot.as_ref()?;
            Some((index, queue.next_avail()))
        });
        let responses = self.parked.iter().filter_map(|(tag, response)| {
            let (_, ring) = self.stopped.get(usize::from(tag.queue))?.as_ref()?;
            Some(HeldResponse {
                queue: tag.queue,
                head: tag.head,
                segments: ring.room_of(tag.head)?,
                bytes: response.as_bytes().to_vec(),
            })
        });
        Held {
            queues: queues.collect(),
            responses: responses.collect(),
        }
    }

    /// The queues are stopped, and hold this.
    pub(super) fn install(&mut self, held: Held, generation: u32) {
        for (index, next) in held.queues {
            let Ok(mut queue) = Queue::new(QUEUE_SIZE) else {
                continue;
            };
            queue.set_next_avail(next);
            if let Some(slot) = self.stopped.get_mut(usize::from(index)) {
                *slot = Some((queue, Ring::new(index)));
            }
        }
        for response in held.responses {
            let slot = self.stopped.get_mut(usize::from(response.queue));
            if let Some(Some((_, ring))) = slot {
                ring.hold(response.head, &response.segments);
                let tag = Tag {
                    generation,
                    queue: response.queue,
                    head: response.head,
                };
                let bytes = Response::from_bytes(response.bytes);
                self.parked.push((tag, bytes));
            }
        }
    }

    /// Takes a step on a queue; `None` if no command may be taken of it. A queue that is broken does not run any more.
    pub(super) fn next(
        &mut self,
        index: u16,
        command: &mut Vec<u8>,
    ) -> Option<Result<Next, Broken>> {
        let may_take = self.bus_master && self.paused == 0;
        let at = usize::from(index);
        let slot = self.queues.get_mut(at).filter(|_| may_take)?;
        let (queue, ring) = slot.as_mut()?;
        let log = self.logs.get_mut(at)?;
        let next = ring.next(queue, &self.memory, command, log);
        if let Err(broken) = &next {
            *slot = None;
            log.warn(format_args!(
                "queue {index} stops until the guest resets the device: {broken}"
            ));
        }
        Some(next)
    }

    /// Writes the response to a chain of this generation, or keeps it until its queue goes on.
    pub(super) fn finish(&mut self, tag: Tag, response: &Response) {
        let at = usize::from(tag.queue);
        let Some(log) = self.logs.get_mut(at) else {
            return;
        };
        match self.queues.get_mut(at) {
            Some(Some((queue, ring))) if self.bus_master => {
                ring.finish(queue, &self.memory, tag.head, response.as_bytes(), log);
            }
            _ if self.stopped.get(at).is_some_and(Option::is_some) => {
                self.parked.push((tag, response.clone()));
            }
            _ => {}
        }
    }

    /// Whether the driver of a queue waits for an interrupt; not of one that does not run.
    pub(super) fn wants_interrupt(&mut self, index: u16) -> bool {
        let slot = self.queues.get_mut(usize::from(index));
        match slot.filter(|_| self.bus_master) {
            Some(Some((queue, ring))) => ring.wants_interrupt(queue, &self.memory),
            _ => false,
        }
    }
}
