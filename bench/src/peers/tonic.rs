//! gRPC over a Unix socket, by tonic: what a program would use that wants calls instead of bytes. One channel, unary calls, the
//! server and the client put together as tonic's generated code does it, but for the messages: those are the same bytes as in the
//! other peers, header and payload, without protobuf around them, which only makes it faster.
//!
//! Each side is pinned to one processor, so each has a runtime of one thread: a second one would only be in its way.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::{Buf, BufMut, Bytes};
use lapce_ai_proto::HEADER_LEN;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::client;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::tokio_stream::wrappers::UnixListenerStream;
use tonic::codegen::{BoxFuture, Context, Poll, Service};
use tonic::server;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};

use super::{Peer, Setup};
use crate::child::{Child, Parent};
use crate::message::{Flow, Messages, payload_of};

const METHOD: &str = "/lapce.ai.bench.Echo/Echo";
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Messages that are bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Bare;

impl Codec for Bare {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bare {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Bare {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// The asking side.
pub(super) struct Tonic {
    runtime: Runtime,
    client: client::Grpc<Channel>,
    answer: Bytes,
    child: Child,
    _dir: TempDir,
}

impl Tonic {
    pub(super) fn start(setup: &Setup, payload: usize) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("lapce-ai-bench-")
            .tempdir()?;
        let socket = dir.path().join("grpc.sock");
        let socket = socket.to_str().context("no UTF-8 path")?;
        let frame = HEADER_LEN + payload;
        let child = Child::start(&["tonic", socket, &frame.to_string()], &setup.cpus, &[])?;
        let runtime = runtime()?;
        let endpoint = Endpoint::from_shared(format!("unix://{socket}"))?;
        let channel = runtime.block_on(endpoint.connect())?;
        let client = client::Grpc::new(channel)
            .max_decoding_message_size(frame)
            .max_encoding_message_size(frame);
        Ok(Self {
            runtime,
            client,
            answer: Bytes::new(),
            child,
            _dir: dir,
        })
    }
}

async fn call(mut client: client::Grpc<Channel>, frame: Bytes) -> Result<Bytes> {
    client.ready().await?;
    let request = tonic::Request::new(frame);
    let path = PathAndQuery::from_static(METHOD);
    let response = timeout(PATIENCE, client.unary(request, path, Bare)).await;
    Ok(response.context("no answer has come")??.into_inner())
}

impl Peer for Tonic {
    fn round_trip<'a>(&'a mut self, messages: &Messages, index: usize) -> Result<Option<&'a [u8]>> {
        let frame = Bytes::copy_from_slice(messages.frame(index));
        self.answer = self.runtime.block_on(call(self.client.clone(), frame))?;
        payload_of(&self.answer).map(Some)
    }

    fn windowed(&mut self, flow: &mut Flow<'_>) -> Result<()> {
        let messages = flow.messages();
        let client = &self.client;
        self.runtime.block_on(async {
            let mut pending: VecDeque<JoinHandle<Result<Bytes>>> =
                VecDeque::with_capacity(messages.len());
            while !flow.is_done() {
                while let Some(index) = flow.next() {
                    let frame = Bytes::copy_from_slice(messages.frame(index));
                    pending.push_back(tokio::spawn(call(client.clone(), frame)));
                    flow.sent();
                }
                if let Some(first) = pending.pop_front() {
                    flow.answered(payload_of(&first.await??)?)?;
                }
            }
            Ok(())
        })
    }

    fn finish(self: Box<Self>) -> Result<()> {
        drop(self.client);
        self.child.finish()
    }
}

/// The answering side.
pub(super) fn answer(parent: Parent, socket: &Path, frame: usize) -> Result<()> {
    runtime()?.block_on(async {
        let listener = UnixListener::bind(socket)?;
        parent.ready()?;
        Server::builder()
            .serve_with_incoming(Echo { frame }, UnixListenerStream::new(listener))
            .await?;
        Ok(())
    })
}

fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().context("cannot start tokio")
}

/// What tonic generates for a service of one unary method.
#[derive(Debug, Clone, Copy)]
struct Echo {
    frame: usize,
}

impl Service<Request<Body>> for Echo {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { frame } = *self;
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::new(Code::Unimplemented, "no such method").into_http());
            }
            let mut grpc = server::Grpc::new(Bare)
                .max_decoding_message_size(frame)
                .max_encoding_message_size(frame);
            Ok(grpc.unary(Same, request).await)
        })
    }
}

/// The method.
#[derive(Debug, Clone, Copy)]
struct Same;

impl Service<tonic::Request<Bytes>> for Same {
    type Response = tonic::Response<Bytes>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        Box::pin(async move {
            let frame = request.into_inner();
            payload_of(&frame).map_err(|error| Status::invalid_argument(error.to_string()))?;
            Ok(tonic::Response::new(frame))
        })
    }
}
