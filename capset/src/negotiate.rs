//! One function for both ends: can these two talk, and about what?

use hostblob_protocol::request::{CreateFlags, Request, request_bit};
use hostblob_protocol::{VERSION_MAJOR, VERSION_MINOR};
use thiserror::Error;

/// What a peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Protocol version, first part.
    pub major: u16,
    /// Protocol version, second part.
    pub minor: u16,
    /// A set of [`request_bit`]s.
    pub requests: u64,
    /// Flags of `Create`.
    pub create_flags: CreateFlags,
}

impl Offer {
    /// Everything that this build of the protocol knows.
    pub const EVERYTHING: Offer = Offer {
        major: VERSION_MAJOR,
        minor: VERSION_MINOR,
        requests: Request::ALL,
        create_flags: CreateFlags::all(),
    };
}

/// What both speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The smaller minor version.
    pub minor: u16,
    /// Requests that both know.
    pub requests: u64,
    /// Flags that both know.
    pub create_flags: CreateFlags,
}

/// Why two peers cannot talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Mismatch {
    /// Old bytes would be misread.
    #[error(
        "protocol version {theirs} of the peer is not our version {ours}: update the older of guest library and hostblobd"
    )]
    Major {
        /// Ours.
        ours: u16,
        /// The peer's.
        theirs: u16,
    },
    /// Without these nothing works.
    #[error("the peer lacks basic requests (set {0:#x})")]
    MissingRequests(u64),
}

/// Requests without which a conversation makes no sense.
const BASIC: u64 = request_bit::OPEN_ANSWERS | request_bit::CREATE | request_bit::FREE;

/// What `ours` and `theirs` have in common. Symmetric but for the wording of the error.
pub fn negotiate(ours: &Offer, theirs: &Offer) -> Result<Agreed, Mismatch> {
    if ours.major != theirs.major {
        return Err(Mismatch::Major {
            ours: ours.major,
            theirs: theirs.major,
        });
    }
    let requests = ours.requests & theirs.requests;
    if requests & BASIC != BASIC {
        return Err(Mismatch::MissingRequests(BASIC & !requests));
    }
    Ok(Agreed {
        minor: ours.minor.min(theirs.minor),
        requests,
        create_flags: ours.create_flags & theirs.create_flags,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_intersection_is_symmetric() {
        let old = Offer {
            minor: 0,
            requests: BASIC | request_bit::FILL,
            create_flags: CreateFlags::HOST_VISIBLE,
            ..Offer::EVERYTHING
        };
        let new = Offer {
            minor: 7,
            requests: BASIC | request_bit::COPY | request_bit::FILL | 1 << 60,
            ..Offer::EVERYTHING
        };
        let agreed = negotiate(&old, &new).unwrap();
        assert_eq!(agreed, negotiate(&new, &old).unwrap());
        assert_eq!(agreed.minor, 0);
        assert_eq!(agreed.requests, BASIC | request_bit::FILL);
        assert_eq!(agreed.create_flags, CreateFlags::HOST_VISIBLE);
    }

    #[test]
    fn another_major_or_no_basics_is_refused() {
        let ours = Offer::EVERYTHING;
        let theirs = Offer {
            major: ours.major + 1,
            ..ours
        };
        assert_eq!(
            negotiate(&ours, &theirs),
            Err(Mismatch::Major {
                ours: ours.major,
                theirs: ours.major + 1
            })
        );
        let theirs = Offer {
            requests: Request::ALL & !request_bit::CREATE,
            ..ours
        };
        assert_eq!(
            negotiate(&ours, &theirs),
            Err(Mismatch::MissingRequests(request_bit::CREATE))
        );
    }
}
