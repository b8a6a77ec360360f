//! What a session has asked of its provider: enough to ask it again of the next process.
//!
//! | when the process ends | then |
//! |---|---|
//! | files, attachments to files | are told to the next process when they are needed |
//! | device memory | is lost: what uses it is answered [`ProviderError::DeviceLost`] until it is released |
//! | work under way, allocations, exports | are answered [`ProviderError::DeviceLost`] |
//!
//! Answers leave in the order of the requests, also those that no process was asked for. Pure bookkeeping: what is to be sent comes back.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::SeekFrom;

use super::watch::Kind;
use super::wire::{Asked, Beside, split_pieces};
use crate::exports::is_dma_buf;
use crate::provider::outlet::Outlet;
use crate::provider::{AttachmentId, Completion, Elsewhere, FileId, Piece, ProviderError, Request};
use crate::ratelimit::RateLimiter;

type Answer = Result<Option<Elsewhere>, ProviderError>;

/// A message for the process.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) asked: Asked,
    pub(super) files: Vec<Arc<File>>,
}

/// The process said what it could not have said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nonsense(pub(super) &'static str);

/// One session.
pub(super) struct Book {
    outlet: Arc<Outlet>,
    files: HashMap<FileId, Known>,
    attachments: HashMap<AttachmentId, Attached>,
    queue: VecDeque<Entry>,
    /// The number of the last message to a process.
    last: u64,
    log: RateLimiter,
}

/// A file, or pieces of files.
struct Known {
    source: Source,
    /// Which process knows it.
    told: Option<u64>,
    /// Attachments to it.
    users: usize,
    /// It was removed, and stays for its attachments.
    removed: bool,
}

enum Source {
    Memfd(Arc<File>, u64),
    Pieces(Vec<Piece>),
}

struct Attached {
    place: Place,
    /// Which process has it.
    told: Option<u64>,
}

enum Place {
    File {
        file: FileId,
        offset: u64,
        length: u64,
        memory_type: u32,
    },
    Device {
        length: u64,
    },
}

/// A request, or a message of our own, that has not been answered.
struct Entry {
    /// What the process calls it; none where it was not asked.
    number: Option<u64>,
    /// What the session calls it.
    sequence: Option<u64>,
    effect: Effect,
    answer: Option<Answer>,
}

/// What an answer means to the book.
#[derive(Debug, Clone, Copy)]
enum Effect {
    None,
    /// The process has it no more.
    Gone,
    AddFile(FileId),
    Attach(AttachmentId),
    Allocate(AttachmentId),
    /// Of so many bytes.
    Export(u64),
}

impl Effect {
    /// FILL, COPY and the zeroing of new memory are work of the GPU.
    fn kind(self) -> Kind {
        match self {
            Self::None | Self::Allocate(_) => Kind::Job,
            Self::Gone | Self::AddFile(_) | Self::Attach(_) | Self::Export(_) => Kind::Message,
        }
    }
}

impl Book {
    pub(super) fn new(outlet: Arc<Outlet>) -> Self {
        Self {
            outlet,
            files: HashMap::new(),
            attachments: HashMap::new(),
            queue: VecDeque::new(),
            last: 0,
            log: RateLimiter::new(),
        }
    }

    /// Takes a request; what to send to `process`, where there is one.
    pub(super) fn request(
        &mut self,
        sequence: u64,
        request: Request,
        process: Option<u64>,
    ) -> Vec<Outgoing> {
        let mut out = Vec::new();
        if let Err(error) = self.take(sequence, request, process, &mut out) {
            self.answer_now(sequence, Err(error));
        }
        out
    }

    fn take(
        &mut self,
        sequence: u64,
        request: Request,
        process: Option<u64>,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), ProviderError> {
        let effect = match request {
            Request::AddFile {
                file,
                descriptor,
                length,
            } => {
                let source = Source::Memfd(Arc::new(descriptor.into()), length);
                return self.add(sequence, file, source, process, out);
            }
            Request::AddPieces { file, pieces } => {
                return self.add(sequence, file, Source::Pieces(pieces), process, out);
            }
            Request::RemoveFile { file } => return self.remove(sequence, file, process, out),
            Request::Attach {
                attachment,
                file,
                offset,
                length,
                memory_type,
            } => {
                let place = Place::File {
                    file,
                    offset,
                    length,
                    memory_type,
                };
                return self.attach(sequence, attachment, place, process, out);
            }
            Request::Release { attachment } => {
                return self.release(sequence, attachment, process, out);
            }
            Request::Allocate {
                attachment, length, ..
            } => {
                self.check_new(attachment)?;
                let told = Some(process.ok_or_else(no_process)?);
                let place = Place::Device { length };
                self.attachments
                    .insert(attachment, Attached { place, told });
                Effect::Allocate(attachment)
            }
            Request::Export { attachment } => {
                self.bring(attachment, process, out)?;
                match self.attachments.get(&attachment).map(|found| &found.place) {
                    Some(Place::Device { length }) => Effect::Export(*length),
                    _ => Effect::Export(0),
                }
            }
            Request::Fill { attachment, .. } => {
                self.bring(attachment, process, out)?;
                Effect::None
            }
            Request::Copy {
                source,
                destination,
                ..
            } => {
                self.bring(source, process, out)?;
                self.bring(destination, process, out)?;
                Effect::None
            }
        };
        // What names memory has returned above.
        if let Some(asked) = request.without_memory() {
            self.send(Some(sequence), asked, Vec::new(), effect, out);
        }
        Ok(())
    }

    fn add(
        &mut self,
        sequence: u64,
        file: FileId,
        source: Source,
        process: Option<u64>,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), ProviderError> {
        if self.files.contains_key(&file) {
            return Err(ProviderError::Invalid(format!("file {} exists", file.0)));
        }
        let message = source.message(file)?;
        let known = Known {
            source,
            told: process,
            users: 0,
            removed: false,
        };
        self.files.insert(file, known);
        match process {
            Some(_) => self.send(
                Some(sequence),
                message.0,
                message.1,
                Effect::AddFile(file),
                out,
            ),
            None => self.answer_now(sequence, Ok(None)),
        }
        Ok(())
    }

    fn remove(
        &mut self,
        sequence: u64,
        file: FileId,
        process: Option<u64>,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), ProviderError> {
        let known = self.files.get_mut(&file).filter(|known| !known.removed);
        let known =
            known.ok_or_else(|| ProviderError::Invalid(format!("file {} is unknown", file.0)))?;
        let is_told = known.told.is_some() && known.told == process;
        known.told = None;
        known.removed = true;
        if known.users == 0 {
            self.files.remove(&file);
        }
        if is_told {
            self.send(
                Some(sequence),
                Asked::RemoveFile { file },
                Vec::new(),
                Effect::Gone,
                out,
            );
        } else {
            self.answer_now(sequence, Ok(None));
        }
        Ok(())
    }

    fn attach(
        &mut self,
        sequence: u64,
        attachment: AttachmentId,
        place: Place,
        process: Option<u64>,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), ProviderError> {
        self.check_new(attachment)?;
        let Place::File { file, .. } = place else {
            return Ok(());
        };
        let known = self.files.get_mut(&file).filter(|known| !known.removed);
        let known =
            known.ok_or_else(|| ProviderError::Invalid(format!("file {} is unknown", file.0)))?;
        known.users += 1;
        self.attachments
            .insert(attachment, Attached { place, told: None });
        match process {
            Some(_) => self.attach_again(attachment, process, Some(sequence), out)?,
            // It is asked when it is used.
            None => self.answer_now(sequence, Ok(None)),
        }
        Ok(())
    }

    fn release(
        &mut self,
        sequence: u64,
        attachment: AttachmentId,
        process: Option<u64>,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), ProviderError> {
        let found = self.attachments.remove(&attachment);
        let found = found.ok_or_else(|| unknown(attachment))?;
        if found.told.is_some() && found.told == process {
            self.send(
                Some(sequence),
                Asked::Release { attachment },
                Vec::new(),
                Effect::Gone,
                out,
            );
        } else {
            self.answer_now(sequence, Ok(None));
        }
        if let Place::File { file, .. } = found.place {
            self.let_go(file, process, out);
        }
        Ok(())
    }

    /// An attachment to a file has ended.
    fn let_go(&mut self, file: FileId, process: Option<u64>, out: &mut Vec<Outgoing>) {
        let Some(known) = self.files.get_mut(&file) else {
            return;
        };
        known.users = known.users.saturating_sub(1);
        if known.users == 0 && known.removed {
            let is_told = known.told.is_some() && known.told == process;
            self.files.remove(&file);
            if is_told {
                self.send(
                    None,
                    Asked::RemoveFile { file },
                    Vec::new(),
                    Effect::Gone,
                    out,
                );
            }
        }
    }

    /// Has the process know an attachment that is about to be used.
    fn bring(
        &mut self,
        attachment: AttachmentId,
        process: Option<u64>,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), ProviderError> {
        let here = process.ok_or_else(no_process)?;
        match self.attachments.get(&attachment) {
            // Refused by the process, in the words of all providers.
            None => Ok(()),
            Some(found) if found.told == Some(here) => Ok(()),
            Some(Attached {
                place: Place::File { .. },
                ..
            }) => self.attach_again(attachment, process, None, out),
            Some(_) => Err(lost("this device memory went with it")),
        }
    }

    fn attach_again(
        &mut self,
        attachment: AttachmentId,
        process: Option<u64>,
        sequence: Option<u64>,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), ProviderError> {
        let Some(found) = self.attachments.get_mut(&attachment) else {
            return Err(unknown(attachment));
        };
        let Place::File {
            file,
            offset,
            length,
            memory_type,
        } = found.place
        else {
            return Err(unknown(attachment));
        };
        found.told = process;
        if let Some(known) = self.files.get_mut(&file)
            && known.told != process
        {
            known.told = process;
            let (asked, files) = known.source.message(file)?;
            self.send(None, asked, files, Effect::AddFile(file), out);
        }
        let asked = Asked::Attach {
            attachment,
            file,
            offset,
            length,
            memory_type,
        };
        self.send(sequence, asked, Vec::new(), Effect::Attach(attachment), out);
        Ok(())
    }

    fn check_new(&self, attachment: AttachmentId) -> Result<(), ProviderError> {
        if self.attachments.contains_key(&attachment) {
            return Err(ProviderError::Invalid(format!(
                "attachment {} exists",
                attachment.0
            )));
        }
        Ok(())
    }

    fn send(
        &mut self,
        sequence: Option<u64>,
        asked: Asked,
        files: Vec<Arc<File>>,
        effect: Effect,
        out: &mut Vec<Outgoing>,
    ) {
        self.last += 1;
        self.queue.push_back(Entry {
            number: Some(self.last),
            sequence,
            effect,
            answer: None,
        });
        out.push(Outgoing {
            number: self.last,
            kind: effect.kind(),
            asked,
            files,
        });
    }

    /// An answer that no process gives; not before those to earlier requests.
    fn answer_now(&mut self, sequence: u64, answer: Answer) {
        self.queue.push_back(Entry {
            number: None,
            sequence: Some(sequence),
            effect: Effect::None,
            answer: Some(answer),
        });
        self.deliver();
    }

    /// What the process has not answered.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = Kind> {
        let waiting = self.queue.iter().filter(|entry| entry.answer.is_none());
        waiting.map(|entry| entry.effect.kind())
    }

    /// The process has answered message `number`, which was of this kind.
    pub(super) fn answered(
        &mut self,
        number: u64,
        result: Result<(), ProviderError>,
        beside: Beside,
    ) -> Result<Kind, Nonsense> {
        let waiting = self.queue.iter_mut().find(|entry| entry.answer.is_none());
        let entry = waiting
            .filter(|entry| entry.number == Some(number))
            .ok_or(Nonsense("an answer to what was not asked next"))?;
        let (effect, is_ours) = (entry.effect, entry.sequence.is_none());
        let answer = match (result, effect) {
            // Ours is the limit, and it is not the process that is to blame.
            (Ok(()), Effect::Export(_)) if beside.is_cut => Err(no_descriptors()),
            (Ok(()), Effect::Export(length)) => Ok(Some(exported(beside.files, length)?)),
            (Ok(()), _) => Ok(None),
            (Err(error), _) => Err(error),
        };
        if let Err(error) = &answer {
            if is_ours {
                self.log.warn(format_args!(
                    "what the last process of the provider had, the next refuses: {error}"
                ));
            }
            self.refused(effect, is_ours);
        }
        let entry = self.queue.iter_mut().find(|entry| entry.answer.is_none());
        if let Some(entry) = entry {
            entry.answer = Some(answer);
        }
        self.deliver();
        Ok(effect.kind())
    }

    /// What was asked is not so.
    fn refused(&mut self, effect: Effect, is_ours: bool) {
        match effect {
            Effect::None | Effect::Gone | Effect::Export(_) => {}
            Effect::AddFile(file) if is_ours => {
                if let Some(known) = self.files.get_mut(&file) {
                    known.told = None;
                }
            }
            Effect::AddFile(file) => drop(self.files.remove(&file)),
            // To be tried once more by the next use.
            Effect::Attach(attachment) if is_ours => {
                if let Some(found) = self.attachments.get_mut(&attachment) {
                    found.told = None;
                }
            }
            Effect::Attach(attachment) | Effect::Allocate(attachment) => {
                if let Some(Attached {
                    place: Place::File { file, .. },
                    ..
                }) = self.attachments.remove(&attachment)
                    && let Some(known) = self.files.get_mut(&file)
                {
                    known.users = known.users.saturating_sub(1);
                }
            }
        }
    }

    /// The process has ended.
    pub(super) fn process_ended(&mut self) {
        let waiting = self.queue.iter_mut().filter(|entry| entry.answer.is_none());
        let mut failed = Vec::new();
        for entry in waiting {
            entry.answer = Some(match entry.effect {
                // The next process hears of it.
                Effect::AddFile(_) | Effect::Attach(_) | Effect::Gone => Ok(None),
                Effect::None | Effect::Allocate(_) | Effect::Export(_) => {
                    failed.push(entry.effect);
                    Err(lost("while this was under way"))
                }
            });
        }
        for effect in failed {
            self.refused(effect, false);
        }
        self.deliver();
    }

    fn deliver(&mut self) {
        while let Some(answer) = self.queue.front_mut().and_then(|first| first.answer.take()) {
            if let Some(Entry {
                sequence: Some(sequence),
                ..
            }) = self.queue.pop_front()
            {
                let result = answer;
                self.outlet.deliver(Completion { sequence, result });
            }
        }
    }
}

impl Source {
    fn message(&self, file: FileId) -> Result<(Asked, Vec<Arc<File>>), ProviderError> {
        match self {
            Self::Memfd(memfd, length) => {
                let asked = Asked::AddFile {
                    file,
                    descriptor: (),
                    length: *length,
                };
                Ok((asked, vec![Arc::clone(memfd)]))
            }
            Self::Pieces(pieces) => {
                let (pieces, files) = split_pieces(pieces)?;
                Ok((Asked::AddPieces { file, pieces }, files))
            }
        }
    }
}

/// What the process gave is checked as if a stranger had: a driver may have taken it over.
fn exported(mut descriptors: Vec<OwnedFd>, length: u64) -> Result<Elsewhere, Nonsense> {
    let descriptor = descriptors
        .pop()
        .ok_or(Nonsense("an export without a descriptor"))?;
    if !is_dma_buf(descriptor.as_fd()).unwrap_or(false) && !keeps_its_size(&descriptor) {
        return Err(Nonsense("an export that is no dma-buf and could shrink"));
    }
    match rustix::fs::seek(&descriptor, SeekFrom::End(0)) {
        Ok(size) if size >= length => Ok(Elsewhere::File(Arc::new(descriptor.into()))),
        _ => Err(Nonsense("an export that is too short")),
    }
}

fn keeps_its_size(descriptor: &OwnedFd) -> bool {
    rustix::fs::fcntl_get_seals(descriptor)
        .is_ok_and(|seals| seals.contains(rustix::fs::SealFlags::SHRINK))
}

fn lost(what: &str) -> ProviderError {
    ProviderError::DeviceLost(format!("the process with the GPU driver ended: {what}"))
}

fn no_process() -> ProviderError {
    lost("the next one does not serve yet")
}

fn no_descriptors() -> ProviderError {
    ProviderError::OutOfHostMemory("hostblobd may have no more descriptors".to_owned())
}

fn unknown(attachment: AttachmentId) -> ProviderError {
    ProviderError::Invalid(format!("attachment {} is unknown", attachment.0))
}

#[cfg(test)]
mod tests;
