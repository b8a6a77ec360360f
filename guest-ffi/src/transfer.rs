//! Work for the host GPU: fills and copies, one by one or several in one command.

use std::sync::Arc;

use hostblob_protocol::envelope::MAX_STRUCTURES;
use hostblob_protocol::request::{Copy, Fill, request_bit};
use hostblob_protocol::{Request, Status};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::fence::Fence;
use crate::memory::{Memory, WHOLE_SIZE};
use crate::transport::RING_GPU;

/// Most transfers of one [`Device::transfer`].
pub const MOST_TRANSFERS: usize = MAX_STRUCTURES;

/// Something that the host GPU does with memory.
#[derive(Debug, Clone, Copy)]
pub enum Transfer<'a> {
    /// Fills a range with a 32-bit value.
    Fill {
        /// Which memory.
        memory: &'a Memory,
        /// First byte: a multiple of 4.
        offset: u64,
        /// Bytes: a multiple of 4, not 0; [`WHOLE_SIZE`] reaches to the last multiple of 4.
        length: u64,
        /// Four bytes, repeated.
        value: u32,
    },
    /// Copies between memories, or within one where the ranges do not overlap.
    Copy {
        /// From which memory.
        source: &'a Memory,
        /// First byte there.
        source_offset: u64,
        /// To which memory; it may be the source.
        destination: &'a Memory,
        /// First byte there.
        destination_offset: u64,
        /// Bytes, not 0.
        length: u64,
    },
}

impl Transfer<'_> {
    fn what(&self) -> &'static str {
        match self {
            Transfer::Fill { .. } => "fill",
            Transfer::Copy { .. } => "copy",
        }
    }
}

impl Device {
    /// Fills a range with a 32-bit value, on the host GPU. Offset and length are multiples of 4; [`WHOLE_SIZE`] reaches to the end.
    pub fn fill(&self, memory: &Memory, offset: u64, length: u64, value: u32) -> Result<Fence> {
        self.transfer(&[Transfer::Fill {
            memory,
            offset,
            length,
            value,
        }])
    }

    /// Copies between memories, or within one where the ranges do not overlap, on the host GPU.
    pub fn copy(
        &self,
        source: &Memory,
        source_offset: u64,
        destination: &Memory,
        destination_offset: u64,
        length: u64,
    ) -> Result<Fence> {
        self.transfer(&[Transfer::Copy {
            source,
            source_offset,
            destination,
            destination_offset,
            length,
        }])
    }

    /// Fills and copies, on the host GPU, in one command: up to [`MOST_TRANSFERS`] of them, not none.
    ///
    /// Each sees what those before it have written, in this call and in earlier ones. At the first that fails the host stops;
    /// what was done before it stays done.
    pub fn transfer(&self, transfers: &[Transfer<'_>]) -> Result<Fence> {
        let what = match transfers {
            [one] => one.what(),
            _ => "transfers",
        };
        if transfers.is_empty() || transfers.len() > MOST_TRANSFERS {
            return Err(Error::invalid(format!(
                "{} transfers at once; 1 to {MOST_TRANSFERS} can be",
                transfers.len()
            )));
        }
        let requests: Vec<Request> = transfers
            .iter()
            .map(|transfer| self.request_of(transfer))
            .collect::<Result<_>>()?;
        let sent = self.session().send(&requests, None, RING_GPU)?;
        Ok(Fence::new(self.session().clone(), sent, what))
    }

    fn request_of(&self, transfer: &Transfer<'_>) -> Result<Request> {
        let what = transfer.what();
        match *transfer {
            Transfer::Fill {
                memory,
                offset,
                length,
                value,
            } => {
                self.must_be_ours(memory, what)?;
                let mut range = memory.range(offset, length, what)?;
                if length == WHOLE_SIZE {
                    range.length -= range.length % 4;
                }
                if !offset.is_multiple_of(4) || !range.length.is_multiple_of(4) || range.length == 0
                {
                    return Err(Error::invalid(
                        "fill takes offset and length in multiples of 4, not 0",
                    ));
                }
                self.session().needs(request_bit::FILL, what)?;
                Ok(Fill { range, value }.into())
            }
            Transfer::Copy {
                source,
                source_offset,
                destination,
                destination_offset,
                length,
            } => {
                self.must_be_ours(source, what)?;
                self.must_be_ours(destination, what)?;
                if length == 0 || length == WHOLE_SIZE {
                    return Err(Error::invalid("copy takes a length, not 0"));
                }
                let from = source.range(source_offset, length, what)?;
                let to = destination.range(destination_offset, length, what)?;
                if from.client_id == to.client_id && from.offset.abs_diff(to.offset) < length {
                    return Err(Error::invalid("the ranges of a copy overlap"));
                }
                self.session().needs(request_bit::COPY, what)?;
                Ok(Copy {
                    source: from,
                    destination_client_id: to.client_id,
                    destination_offset: to.offset,
                }
                .into())
            }
        }
    }

    fn must_be_ours(&self, memory: &Memory, what: &str) -> Result<()> {
        if !Arc::ptr_eq(memory.session(), self.session()) {
            return Err(Error::invalid(format!("{what}: memory of another device")));
        }
        if memory.client_id() == 0 {
            return Err(Error::status_of(
                Status::Unsupported,
                format!("{what} of imported memory without a name"),
            ));
        }
        Ok(())
    }
}
