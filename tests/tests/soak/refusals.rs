//! A client that sends what is refused, each for another reason, as fast as it gets answers.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use hostblob_protocol::local::{COMMAND, Frame, Hello};
use hostblob_protocol::virtio_gpu::{
    CmdSubmit, CtrlHdr, CtxCreate, GetCapset, GetCapsetInfo, ResourceAttachBacking,
    ResourceCreate2d, ResourceCreateBlob, ResourceMapBlob, ResourceOnly, SetScanout, blob_flag,
    blob_mem, cmd, resp,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const CONTEXT: u32 = 1;
/// Blobs of a page: one that is mapped at the window's beginning, one that is not.
const MAPPED: u32 = 1;
const UNMAPPED: u32 = 2;
/// A name that nothing has.
const UNKNOWN: u32 = 7;
const PAGE: u64 = 4096;

/// A command in its frame.
fn framed<T: IntoBytes + Immutable + ?Sized>(kind: u32, context: u32, body: &T) -> Vec<u8> {
    let header = CtrlHdr {
        cmd_type: kind.into(),
        ctx_id: context.into(),
        ..CtrlHdr::default()
    };
    let length = size_of::<CtrlHdr>() + body.as_bytes().len();
    let frame = Frame {
        length: u32::try_from(length).expect("a short command").into(),
        kind: COMMAND.into(),
        ..Frame::default()
    };
    [frame.as_bytes(), header.as_bytes(), body.as_bytes()].concat()
}

fn blob(resource: u32, id: u64, size: u64) -> ResourceCreateBlob {
    ResourceCreateBlob {
        resource_id: resource.into(),
        blob_mem: blob_mem::HOST3D.into(),
        blob_flags: blob_flag::USE_MAPPABLE.into(),
        nr_entries: 0.into(),
        blob_id: id.into(),
        size: size.into(),
    }
}

fn map(resource: u32, offset: u64) -> ResourceMapBlob {
    ResourceMapBlob {
        resource_id: resource.into(),
        offset: offset.into(),
        ..ResourceMapBlob::default()
    }
}

fn only(resource: u32) -> ResourceOnly {
    ResourceOnly {
        resource_id: resource.into(),
        ..ResourceOnly::default()
    }
}

fn image(width: u32, height: u32) -> ResourceCreate2d {
    ResourceCreate2d {
        resource_id: UNKNOWN.into(),
        format: 1.into(),
        width: width.into(),
        height: height.into(),
    }
}

/// Commands, and their errors: of the contexts and blobs that a [`Client`] has, none is served.
fn refused() -> Vec<(Vec<u8>, u32)> {
    let parameter = resp::ERR_INVALID_PARAMETER;
    let resource = resp::ERR_INVALID_RESOURCE_ID;
    let context = resp::ERR_INVALID_CONTEXT_ID;
    let unspecified = resp::ERR_UNSPEC;
    let nonsense = CmdSubmit {
        size: 64.into(),
        ..CmdSubmit::default()
    };
    let nonsense = [nonsense.as_bytes(), &[0xa5; 64]].concat();
    let entries = ResourceAttachBacking {
        resource_id: UNMAPPED.into(),
        nr_entries: u32::MAX.into(),
    };
    let capset = GetCapsetInfo {
        capset_index: UNKNOWN.into(),
        ..GetCapsetInfo::default()
    };
    let pages = ResourceCreateBlob {
        blob_mem: blob_mem::GUEST.into(),
        nr_entries: u32::MAX.into(),
        ..blob(UNKNOWN, 0, PAGE)
    };
    vec![
        (framed(u32::MAX, 0, &()), unspecified),
        (framed(cmd::GET_EDID, 0, &[0_u8; 8]), unspecified),
        (framed(cmd::RESOURCE_MAP_BLOB, 0, &()), parameter),
        (framed(cmd::GET_CAPSET_INFO, 0, &capset), parameter),
        (framed(cmd::GET_CAPSET, 0, &GetCapset::default()), parameter),
        (
            framed(cmd::CTX_CREATE, CONTEXT, &CtxCreate::default()),
            context,
        ),
        (framed(cmd::CTX_DESTROY, UNKNOWN, &()), context),
        (
            framed(cmd::CTX_ATTACH_RESOURCE, CONTEXT, &only(UNKNOWN)),
            resource,
        ),
        (
            framed(cmd::SUBMIT_3D, UNKNOWN, nonsense.as_slice()),
            context,
        ),
        (
            framed(cmd::SUBMIT_3D, CONTEXT, nonsense.as_slice()),
            parameter,
        ),
        (
            framed(cmd::RESOURCE_CREATE_BLOB, CONTEXT, &blob(MAPPED, 0, PAGE)),
            resource,
        ),
        (
            framed(cmd::RESOURCE_CREATE_BLOB, CONTEXT, &blob(UNKNOWN, 9, PAGE)),
            parameter,
        ),
        (
            framed(cmd::RESOURCE_CREATE_BLOB, CONTEXT, &blob(UNKNOWN, 0, 0)),
            parameter,
        ),
        (
            framed(
                cmd::RESOURCE_CREATE_BLOB,
                CONTEXT,
                &blob(UNKNOWN, 0, 1 << 40),
            ),
            parameter,
        ),
        (
            framed(cmd::RESOURCE_CREATE_BLOB, CONTEXT, &pages),
            parameter,
        ),
        (
            framed(cmd::RESOURCE_MAP_BLOB, 0, &map(UNKNOWN, 0)),
            resource,
        ),
        (
            framed(cmd::RESOURCE_MAP_BLOB, 0, &map(MAPPED, PAGE)),
            parameter,
        ),
        (
            framed(cmd::RESOURCE_MAP_BLOB, 0, &map(UNMAPPED, 0)),
            parameter,
        ),
        (
            framed(cmd::RESOURCE_MAP_BLOB, 0, &map(UNMAPPED, 1)),
            parameter,
        ),
        (
            framed(
                cmd::RESOURCE_MAP_BLOB,
                0,
                &map(UNMAPPED, u64::MAX - PAGE + 1),
            ),
            parameter,
        ),
        (
            framed(cmd::RESOURCE_UNMAP_BLOB, 0, &only(UNMAPPED)),
            parameter,
        ),
        (framed(cmd::RESOURCE_UNREF, 0, &only(UNKNOWN)), resource),
        (
            framed(cmd::RESOURCE_ASSIGN_UUID, 0, &only(UNMAPPED)),
            parameter,
        ),
        (framed(cmd::RESOURCE_CREATE_2D, 0, &image(0, 1)), parameter),
        (
            framed(cmd::RESOURCE_CREATE_2D, 0, &image(u32::MAX, u32::MAX)),
            parameter,
        ),
        (framed(cmd::RESOURCE_ATTACH_BACKING, 0, &entries), parameter),
        (
            framed(cmd::SET_SCANOUT, 0, &SetScanout::default()),
            resp::ERR_INVALID_SCANOUT_ID,
        ),
    ]
}

/// A guest with a context and two blobs.
pub(super) struct Client {
    stream: BufReader<UnixStream>,
    refused: Vec<(Vec<u8>, u32)>,
    /// All of them, one behind the other.
    stretch: Vec<u8>,
}

impl Client {
    pub(super) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("a connection");
        let refused = refused();
        let mut client = Self {
            stream: BufReader::new(stream),
            stretch: refused
                .iter()
                .flat_map(|(bytes, _)| bytes.clone())
                .collect(),
            refused,
        };
        let _: Frame = client.read();
        let hello: Hello = client.read();
        let context = CtxCreate {
            context_init: hello.capset_id,
            ..CtxCreate::default()
        };
        let create =
            |resource| framed(cmd::RESOURCE_CREATE_BLOB, CONTEXT, &blob(resource, 0, PAGE));
        for (command, response) in [
            (framed(cmd::CTX_CREATE, CONTEXT, &context), resp::OK_NODATA),
            (create(MAPPED), resp::OK_NODATA),
            (create(UNMAPPED), resp::OK_NODATA),
            (
                framed(cmd::RESOURCE_MAP_BLOB, 0, &map(MAPPED, 0)),
                resp::OK_MAP_INFO,
            ),
        ] {
            client.send(&command);
            assert_eq!(client.response(), response);
        }
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("it is taken");
    }

    fn read<T: FromBytes + IntoBytes>(&mut self) -> T {
        let mut value = T::new_zeroed();
        self.stream.read_exact(value.as_mut_bytes()).expect("bytes");
        value
    }

    /// The type of the next response.
    fn response(&mut self) -> u32 {
        let frame: Frame = self.read();
        let mut response = vec![0; frame.length.get() as usize];
        self.stream.read_exact(&mut response).expect("a response");
        let (header, _) = CtrlHdr::read_from_prefix(&response).expect("its header");
        header.cmd_type.get()
    }

    /// Sends each command once. Returns how many there are.
    pub(super) fn go(&mut self) -> usize {
        let stretch = std::mem::take(&mut self.stretch);
        self.send(&stretch);
        self.stretch = stretch;
        for at in 0..self.refused.len() {
            let response = self.response();
            assert_eq!(response, self.refused[at].1, "command {at}");
        }
        self.refused.len()
    }
}
