//! vkQueueSubmit and vkQueueSubmit2: what the program lists becomes jobs.

use std::sync::Arc;

use ash::vk;

use super::{Job, Queue};
use crate::chain;
use crate::command::CommandBuffer;
use crate::entry::arguments::{Array, from, slice};
use crate::sync::fence::Fence;
use crate::sync::semaphore::{Payload, Semaphore};

fn payload(semaphore: vk::Semaphore) -> Arc<Payload> {
    // SAFETY: a live semaphore, by the valid usage of vkQueueSubmit.
    let semaphore: &Semaphore = unsafe { from(semaphore) };
    semaphore.payload()
}

fn add_work(job: &mut Job, buffer: vk::CommandBuffer) {
    // SAFETY: a live command buffer, by the valid usage of vkQueueSubmit.
    let buffer: &CommandBuffer = unsafe { from(buffer) };
    job.work.extend(buffer.recorded());
}

/// Semaphores with the values of timelines; binary ones have none, and neither has a list that is too short.
fn with_values(semaphores: &[vk::Semaphore], values: &[u64]) -> Vec<(Arc<Payload>, u64)> {
    let values = values.iter().copied().chain(std::iter::repeat(0));
    let pairs = semaphores.iter().zip(values);
    pairs.map(|(one, value)| (payload(*one), value)).collect()
}

pub(crate) fn submit(
    queue: &Queue,
    count: u32,
    submits: Array<'_, vk::SubmitInfo<'_>>,
    fence: Option<&Fence>,
) -> Result<(), vk::Result> {
    // SAFETY: the count belongs to the array.
    let submits = unsafe { submits.take(count) };
    send(queue, submits.iter().map(job_of).collect(), fence)
}

fn job_of(info: &vk::SubmitInfo<'_>) -> Job {
    // SAFETY: the chain of a structure that the program filled.
    let values = unsafe { chain::find::<vk::TimelineSemaphoreSubmitInfo<'_>>(info.p_next) };
    let (wait_values, signal_values) = values.map_or((&[][..], &[][..]), |values| {
        // SAFETY: the count belongs to the array.
        let waits = unsafe {
            slice(
                values.p_wait_semaphore_values,
                values.wait_semaphore_value_count,
            )
        };
        let signals =
            // SAFETY: as above.
            unsafe { slice(values.p_signal_semaphore_values, values.signal_semaphore_value_count) };
        (waits, signals)
    });
    // SAFETY: the count belongs to the array.
    let waits = unsafe { slice(info.p_wait_semaphores, info.wait_semaphore_count) };
    // SAFETY: as above.
    let signals = unsafe { slice(info.p_signal_semaphores, info.signal_semaphore_count) };
    // SAFETY: as above.
    let buffers = unsafe { slice(info.p_command_buffers, info.command_buffer_count) };
    let mut job = Job {
        waits: with_values(waits, wait_values),
        signals: with_values(signals, signal_values),
        ..Job::default()
    };
    for buffer in buffers {
        add_work(&mut job, *buffer);
    }
    job
}

pub(crate) fn submit2(
    queue: &Queue,
    count: u32,
    submits: Array<'_, vk::SubmitInfo2<'_>>,
    fence: Option<&Fence>,
) -> Result<(), vk::Result> {
    // SAFETY: the count belongs to the array.
    let submits = unsafe { submits.take(count) };
    send(queue, submits.iter().map(job_of2).collect(), fence)
}

fn job_of2(info: &vk::SubmitInfo2<'_>) -> Job {
    let one = |info: &vk::SemaphoreSubmitInfo<'_>| (payload(info.semaphore), info.value);
    // SAFETY: the count belongs to the array.
    let waits = unsafe { slice(info.p_wait_semaphore_infos, info.wait_semaphore_info_count) };
    // SAFETY: as above.
    let signals = unsafe {
        slice(
            info.p_signal_semaphore_infos,
            info.signal_semaphore_info_count,
        )
    };
    // SAFETY: as above.
    let buffers = unsafe { slice(info.p_command_buffer_infos, info.command_buffer_info_count) };
    let mut job = Job {
        waits: waits.iter().map(one).collect(),
        signals: signals.iter().map(one).collect(),
        ..Job::default()
    };
    for buffer in buffers {
        add_work(&mut job, buffer.command_buffer);
    }
    job
}

/// The fence is signalled after the last of them, or alone after all that was submitted before.
fn send(queue: &Queue, mut jobs: Vec<Job>, fence: Option<&Fence>) -> Result<(), vk::Result> {
    if let Some(fence) = fence {
        if jobs.is_empty() {
            jobs.push(Job::default());
        }
        if let Some(last) = jobs.last_mut() {
            last.fence = Some(fence.signal());
        }
    }
    queue.send(jobs)
}
