//! Which bytes a transfer moves: TRANSFER_TO_HOST_3D and TRANSFER_FROM_HOST_3D of a blob, in numbers that a guest chose.

use crate::Error;

/// Most rows that one transfer may have: each is a copy of its own, unless rows are contiguous.
pub const MAX_TRANSFER_ROWS: u64 = 16384;

/// TRANSFER_TO_HOST_3D and TRANSFER_FROM_HOST_3D of a blob, which has no format: `x` and `width` are bytes, `stride` and `layer_stride`
/// hold on both sides. Row `r` of layer `l` has `width` bytes, at `(z + l) * layer_stride + (y + r) * stride + x` of the host's
/// memory and at `offset + l * layer_stride + r * stride` of the guest's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the fields are those of virtio_gpu_transfer_host_3d"
)]
pub struct Transfer {
    pub x: u64,
    pub y: u64,
    pub z: u64,
    pub width: u64,
    pub height: u64,
    pub depth: u64,
    pub offset: u64,
    pub stride: u64,
    pub layer_stride: u64,
}

/// One copy of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) host: u64,
    pub(super) guest: u64,
    pub(super) length: u64,
}

impl Transfer {
    /// The copies that it is made of, all inside `size` bytes on both sides.
    pub(super) fn rows(&self, size: u64) -> Result<Vec<Row>, Error> {
        let argument = |field, value, expected| Error::Argument {
            field,
            value,
            expected,
        };
        let rows = self.height.checked_mul(self.depth);
        if self.width == 0 || rows.is_none_or(|rows| rows == 0) {
            return Err(argument("box", 0, "not empty"));
        }
        let contiguous = self.depth == 1 && self.height > 1 && self.stride == self.width;
        let (height, width) = if contiguous {
            (1, self.width.checked_mul(self.height))
        } else {
            (self.height, Some(self.width))
        };
        let length = width.ok_or(argument("w", self.width, "bytes inside the blob"))?;
        if rows.is_none_or(|rows| rows > MAX_TRANSFER_ROWS) && !contiguous {
            return Err(argument(
                "h",
                self.height,
                "at most 16384 rows in all layers",
            ));
        }
        let end = |start: u64| start.checked_add(length).filter(|end| *end <= size);
        let at = |base: u64, x: u64, y: u64, z: u64| {
            let row = y.checked_mul(self.stride)?;
            let layer = z.checked_mul(self.layer_stride)?;
            let start = base.checked_add(x)?.checked_add(row)?.checked_add(layer)?;
            end(start).map(|_| start)
        };
        let mut list = Vec::new();
        for layer in 0..self.depth {
            for row in 0..height {
                let host = self
                    .y
                    .checked_add(row)
                    .zip(self.z.checked_add(layer))
                    .and_then(|(y, z)| at(0, self.x, y, z));
                let (Some(host), Some(guest)) = (host, at(self.offset, 0, row, layer)) else {
                    return Err(Error::Range {
                        offset: self.offset,
                        length,
                        size,
                    });
                };
                list.push(Row {
                    host,
                    guest,
                    length,
                });
            }
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::window::PAGE;

    const BOX: Transfer = Transfer {
        x: 0,
        y: 0,
        z: 0,
        width: 16,
        height: 1,
        depth: 1,
        offset: 0,
        stride: 0,
        layer_stride: 0,
    };

    fn rows(transfer: Transfer) -> Result<Vec<(u64, u64, u64)>, Error> {
        let rows = transfer.rows(PAGE)?;
        Ok(rows
            .iter()
            .map(|row| (row.host, row.guest, row.length))
            .collect())
    }

    #[test]
    fn the_rows_of_the_box_and_nothing_else() {
        let line = Transfer {
            x: 8,
            offset: 100,
            ..BOX
        };
        assert_eq!(rows(line), Ok(vec![(8, 100, 16)]));
        let image = Transfer {
            x: 4,
            y: 2,
            z: 1,
            height: 2,
            depth: 2,
            offset: 1,
            stride: 32,
            layer_stride: 512,
            ..BOX
        };
        assert_eq!(
            rows(image),
            Ok(vec![
                (580, 1, 16),
                (612, 33, 16),
                (1092, 513, 16),
                (1124, 545, 16)
            ])
        );
        let block = Transfer {
            height: 256,
            stride: 16,
            ..BOX
        };
        assert_eq!(rows(block), Ok(vec![(0, 0, 4096)]), "contiguous: one copy");
    }

    #[test]
    fn what_is_not_inside_is_refused() {
        for bad in [
            Transfer { width: 0, ..BOX },
            Transfer { height: 0, ..BOX },
            Transfer { depth: 0, ..BOX },
            Transfer {
                x: PAGE - 15,
                ..BOX
            },
            Transfer {
                offset: PAGE - 15,
                ..BOX
            },
            Transfer {
                offset: u64::MAX,
                ..BOX
            },
            Transfer {
                y: u64::MAX,
                stride: 2,
                ..BOX
            },
            Transfer {
                z: 1,
                layer_stride: PAGE,
                ..BOX
            },
            Transfer {
                height: 257,
                stride: 16,
                ..BOX
            },
            Transfer {
                width: u64::MAX,
                height: 2,
                stride: u64::MAX,
                ..BOX
            },
            Transfer {
                height: u64::MAX,
                depth: u64::MAX,
                ..BOX
            },
            Transfer {
                width: 1,
                height: MAX_TRANSFER_ROWS,
                depth: 2,
                ..BOX
            },
            Transfer {
                height: 2,
                stride: 16,
                depth: MAX_TRANSFER_ROWS + 1,
                ..BOX
            },
        ] {
            assert!(bad.rows(PAGE).is_err(), "{bad:?}");
        }
    }

    /// What the box says of each of its rows, in sums and products that have room; `None` where one is outside of `size` bytes.
    fn naive(transfer: &Transfer, size: u64) -> Option<Vec<(u64, u64, u64)>> {
        let at = |base: u64, y: u64, z: u64| {
            let row = u128::from(y) * u128::from(transfer.stride);
            let layer = u128::from(z) * u128::from(transfer.layer_stride);
            let start = u128::from(base).saturating_add(row).saturating_add(layer);
            let end = start.saturating_add(transfer.width.into());
            u64::try_from(start).ok().filter(|_| end <= size.into())
        };
        let mut list = Vec::new();
        for layer in 0..transfer.depth {
            for row in 0..transfer.height {
                let (y, z) = (transfer.y.checked_add(row)?, transfer.z.checked_add(layer)?);
                let (host, guest) = (at(transfer.x, y, z)?, at(transfer.offset, row, layer)?);
                list.push((host, guest, transfer.width));
            }
        }
        (!list.is_empty() && transfer.width != 0).then_some(list)
    }

    /// Rows that continue each other on both sides, as one.
    fn joined(list: Vec<(u64, u64, u64)>) -> Vec<(u64, u64, u64)> {
        let mut joined: Vec<(u64, u64, u64)> = Vec::new();
        for (host, guest, length) in list {
            match joined.last_mut() {
                Some(last) if (last.0 + last.2, last.1 + last.2) == (host, guest) => {
                    last.2 += length
                }
                _ => joined.push((host, guest, length)),
            }
        }
        joined
    }

    /// Small, somewhere in the page, or at the end of all numbers.
    fn number() -> impl Strategy<Value = u64> {
        let last = (0..4_u64).prop_map(|less| u64::MAX - less);
        prop_oneof![9 => 0..6_u64, 3 => 0..PAGE, 1 => last]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// A box is served where each of its rows lies inside on both sides, and then these bytes are moved, in this order.
        #[test]
        fn any_box(numbers in proptest::array::uniform9(number())) {
            let [x, y, z, width, height, depth, offset, stride, layer_stride] = numbers;
            let (height, depth) = (height % 8, depth % 8);
            let transfer = Transfer { x, y, z, width, height, depth, offset, stride, layer_stride };
            let expected = naive(&transfer, PAGE);
            prop_assert_eq!(rows(transfer).ok().map(joined), expected.map(joined));
        }
    }
}
