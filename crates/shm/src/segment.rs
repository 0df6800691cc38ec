//! The shared memory of one connection: a header page and two rings.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::layout;
use crate::mapping::{Mapping, ShmError};
use crate::ring::{Consumer, MappedRing, PositionError, Producer, ProducerPosition};

/// A mapped segment whose header is complete and checked.
#[derive(Debug)]
pub struct Segment {
    mapping: Arc<Mapping>,
    request_capacity: u32,
    response_capacity: u32,
}

impl Segment {
    /// Makes a segment, on the server, and returns it with the descriptor to pass to the client.
    /// Close the descriptor once it is passed, unless another process is to take the segment over: the mapping does not
    /// need it.
    ///
    /// # Errors
    /// [`ShmError::InvalidCapacity`], or the system's refusal.
    pub fn create(
        request_capacity: u32,
        response_capacity: u32,
    ) -> Result<(Self, OwnedFd), ShmError> {
        check_capacities(request_capacity, response_capacity)?;
        let len = layout::segment_len(request_capacity, response_capacity);
        let (mapping, file) = Mapping::create(len)?;
        let word = |offset| mapping.atomic_u32(offset);
        mapping
            .atomic_u64(layout::MAGIC_OFFSET)
            .store(layout::MAGIC, Ordering::Relaxed);
        word(layout::HEADER_LEN_OFFSET).store(layout::HEADER_LEN as u32, Ordering::Relaxed);
        mapping
            .atomic_u64(layout::SEGMENT_LEN_OFFSET)
            .store(len, Ordering::Relaxed);
        word(layout::REQUEST_CAPACITY_OFFSET).store(request_capacity, Ordering::Relaxed);
        word(layout::RESPONSE_CAPACITY_OFFSET).store(response_capacity, Ordering::Relaxed);
        // Last: whoever sees the version sees all of the header.
        word(layout::VERSION_OFFSET).store(layout::LAYOUT_VERSION, Ordering::Release);
        let mapping = Arc::new(mapping);
        Ok((
            Self {
                mapping,
                request_capacity,
                response_capacity,
            },
            file,
        ))
    }

    /// Maps a segment, on the client, from the descriptor that the server passed, and closes the
    /// descriptor. The capacities are those of the handshake; the header must say the same.
    ///
    /// # Errors
    /// Each thing that can be wrong has its own error.
    pub fn open(
        file: OwnedFd,
        request_capacity: u32,
        response_capacity: u32,
    ) -> Result<Self, ShmError> {
        let segment = Self::reopen(file, request_capacity, response_capacity)?;
        let len = layout::segment_len(request_capacity, response_capacity);
        check_header(&segment.mapping, len, request_capacity, response_capacity)?;
        Ok(segment)
    }

    /// Maps a segment that another server made, from the descriptor that it kept, and closes the descriptor. The header is for
    /// clients, which may have written over it since; no server reads it.
    ///
    /// # Errors
    /// [`ShmError::InvalidCapacity`], a file that is not sealed or not as long as that, or the system's refusal.
    pub fn reopen(
        file: OwnedFd,
        request_capacity: u32,
        response_capacity: u32,
    ) -> Result<Self, ShmError> {
        check_capacities(request_capacity, response_capacity)?;
        let len = layout::segment_len(request_capacity, response_capacity);
        let mapping = Mapping::open(file, len)?;
        Ok(Self {
            mapping: Arc::new(mapping),
            request_capacity,
            response_capacity,
        })
    }

    /// The server's ends: it reads requests and writes responses.
    #[must_use]
    pub fn into_server_ends(self) -> (Consumer<MappedRing>, Producer<MappedRing>) {
        (
            Consumer::new(self.request_ring()),
            Producer::new(self.response_ring()),
        )
    }

    /// The server's ends of a segment that another process has served so far, up to these positions.
    ///
    /// # Errors
    /// Positions that the rings cannot have.
    pub fn resume_server_ends(
        self,
        consumed: u64,
        produced: &ProducerPosition,
    ) -> Result<(Consumer<MappedRing>, Producer<MappedRing>), PositionError> {
        Ok((
            Consumer::resume(self.request_ring(), consumed)?,
            Producer::resume(self.response_ring(), produced)?,
        ))
    }

    /// The client's ends: it writes requests and reads responses.
    #[must_use]
    pub fn into_client_ends(self) -> (Producer<MappedRing>, Consumer<MappedRing>) {
        (
            Producer::new(self.request_ring()),
            Consumer::new(self.response_ring()),
        )
    }

    /// The memory itself, for tests that play a hostile peer.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    fn request_ring(&self) -> MappedRing {
        MappedRing::new(
            Arc::clone(&self.mapping),
            layout::REQUEST_CONTROL_OFFSET,
            layout::REQUEST_BYTES_OFFSET,
            self.request_capacity as usize,
        )
    }

    fn response_ring(&self) -> MappedRing {
        MappedRing::new(
            Arc::clone(&self.mapping),
            layout::RESPONSE_CONTROL_OFFSET,
            layout::REQUEST_BYTES_OFFSET + self.request_capacity as usize,
            self.response_capacity as usize,
        )
    }
}

fn check_capacities(request_capacity: u32, response_capacity: u32) -> Result<(), ShmError> {
    for capacity in [request_capacity, response_capacity] {
        if !layout::is_valid_capacity(capacity) {
            return Err(ShmError::InvalidCapacity(capacity));
        }
    }
    Ok(())
}

fn check_header(
    mapping: &Mapping,
    len: u64,
    request_capacity: u32,
    response_capacity: u32,
) -> Result<(), ShmError> {
    // First, with Acquire: a complete header is then seen complete.
    let version = mapping
        .atomic_u32(layout::VERSION_OFFSET)
        .load(Ordering::Acquire);
    if version == 0 {
        return Err(ShmError::NotReady);
    }
    let magic = mapping
        .atomic_u64(layout::MAGIC_OFFSET)
        .load(Ordering::Relaxed);
    if magic != layout::MAGIC {
        return Err(ShmError::WrongMagic { found: magic });
    }
    if version != layout::LAYOUT_VERSION {
        let expected = layout::LAYOUT_VERSION;
        return Err(ShmError::WrongLayoutVersion {
            expected,
            found: version,
        });
    }
    let word = |offset| u64::from(mapping.atomic_u32(offset).load(Ordering::Relaxed));
    let segment_len = mapping
        .atomic_u64(layout::SEGMENT_LEN_OFFSET)
        .load(Ordering::Relaxed);
    let fields = [
        (
            "header_len",
            layout::HEADER_LEN as u64,
            word(layout::HEADER_LEN_OFFSET),
        ),
        ("segment_len", len, segment_len),
        (
            "request_capacity",
            request_capacity.into(),
            word(layout::REQUEST_CAPACITY_OFFSET),
        ),
        (
            "response_capacity",
            response_capacity.into(),
            word(layout::RESPONSE_CAPACITY_OFFSET),
        ),
    ];
    for (field, expected, found) in fields {
        if found != expected {
            return Err(ShmError::WrongHeader {
                field,
                expected,
                found,
            });
        }
    }
    Ok(())
}
