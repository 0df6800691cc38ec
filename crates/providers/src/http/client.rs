//! The pooled client: hyper with rustls.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::io::Errno;
use secrecy::SecretString;
use tokio::net::TcpStream;
use tower_service::Service;

use super::proxy::Proxied;
use super::tls;
use crate::error::{ErrorKind, Phase, ProviderError};

/// How connections are made and kept.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// The most time for name resolution, TCP and TLS together. 10 s by default.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept. 90 s by default.
    pub pool_idle_timeout: Duration,
    /// The most unused HTTP/1.1 connections kept for one host. 8 by default; HTTP/2 needs one.
    pub pool_max_idle_per_host: usize,
    /// How often an HTTP/2 connection with a request under way is pinged, to notice its death. 30 s by default.
    pub http2_ping_interval: Duration,
    /// A PEM file of certificates to trust besides the compiled-in ones.
    pub extra_root_certs: Option<PathBuf>,
    /// Whether to trust the system's certificates besides the compiled-in ones: those where OpenSSL looks for them, or
    /// where `SSL_CERT_FILE` and `SSL_CERT_DIR` say. True by default.
    pub system_root_certs: bool,
    /// The HTTP proxy through which `https` addresses are reached, such as `http://user:password@proxy:3128`. It is
    /// asked for a tunnel (`CONNECT`), so it learns the host and nothing else. None by default.
    pub https_proxy: Option<SecretString>,
    /// Hosts that are reached without the proxy, in the form of curl's `NO_PROXY`: names with all below them, addresses,
    /// networks such as `10.0.0.0/8`, or `*`. This machine never needs one.
    pub no_proxy: String,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            pool_idle_timeout: Duration::from_secs(90),
            pool_max_idle_per_host: 8,
            http2_ping_interval: Duration::from_secs(30),
            extra_root_certs: None,
            system_root_certs: true,
            https_proxy: None,
            no_proxy: String::new(),
        }
    }
}

/// A pool of connections to any number of hosts. Clones share it.
///
/// Redirects are not followed.
#[derive(Clone, Debug)]
pub struct HttpClient {
    client: Client<TimedConnector, Full<Bytes>>,
}

impl HttpClient {
    /// A client. No connection is made yet.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) when the extra certificates cannot be read, or the proxy's address is
    /// none.
    pub fn new(config: &HttpConfig) -> Result<Self, ProviderError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls::config(
                config.extra_root_certs.as_deref(),
                config.system_root_certs,
            )?)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(Proxied::new(
                tcp,
                config.https_proxy.as_ref(),
                &config.no_proxy,
            )?);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.pool_idle_timeout)
            .pool_max_idle_per_host(config.pool_max_idle_per_host)
            .http2_keep_alive_interval(config.http2_ping_interval)
            .build(TimedConnector {
                inner: https,
                timeout: config.connect_timeout,
            });
        Ok(Self { client })
    }

    /// Sends `request` and waits for the head of the answer. To cancel, drop the future or the body.
    pub(crate) async fn send(
        &self,
        request: Request<Bytes>,
    ) -> Result<Response<Incoming>, ProviderError> {
        self.client
            .request(request.map(Full::new))
            .await
            .map_err(send_error)
    }
}

fn send_error(error: ClientError) -> ProviderError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    let mut deepest = String::new();
    let mut timed_out = false;
    let mut refused = None;
    while let Some(current) = cause {
        timed_out |= current.is::<ConnectTimedOut>();
        let of_system = current.downcast_ref::<io::Error>();
        refused = refused.or(of_system.and_then(io::Error::raw_os_error));
        deepest = current.to_string();
        cause = current.source();
    }
    let kind = if timed_out {
        ErrorKind::TimedOut(Phase::Connect)
    } else if error.is_connect() && has_no_resources(refused) {
        ErrorKind::NoResources
    } else {
        ErrorKind::ConnectionFailed
    };
    ProviderError::new(kind, deepest).caused_by(error)
}

/// Whether no connection could be made because this process or machine had nothing left to make one with. `refused` is the
/// system's word. Where there is none it is asked again: who looks a name up without descriptors is only told that it failed.
fn has_no_resources(refused: Option<i32>) -> bool {
    let refused = refused.or_else(|| UnixDatagram::unbound().err()?.raw_os_error());
    let none_left = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    let mut none_left = none_left.into_iter().map(Errno::raw_os_error);
    refused.is_some_and(|code| none_left.any(|of| of == code))
}

/// hyper's own connect time-out ends with TCP; this one covers name resolution and TLS, too.
#[derive(Clone, Debug)]
struct TimedConnector {
    inner: HttpsConnector<Proxied>,
    timeout: Duration,
}

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

impl Service<Uri> for TimedConnector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.inner.call(uri);
        let timeout = self.timeout;
        Box::pin(async move {
            match tokio::time::timeout(timeout, connecting).await {
                Ok(outcome) => outcome,
                Err(_) => Err(ConnectTimedOut(timeout).into()),
            }
        })
    }
}

#[derive(Debug)]
struct ConnectTimedOut(Duration);

impl fmt::Display for ConnectTimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no connection after {} s", self.0.as_secs_f64())
    }
}

impl Error for ConnectTimedOut {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_the_system_had_nothing_left_for_is_told_from_what_nobody_answered() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(has_no_resources(Some(errno.raw_os_error())), "{errno}");
        }
        for errno in [Errno::CONNREFUSED, Errno::NETUNREACH, Errno::HOSTUNREACH] {
            assert!(!has_no_resources(Some(errno.raw_os_error())), "{errno}");
        }
        assert!(!has_no_resources(Some(0)), "an error that is none");
        assert!(!has_no_resources(None), "this process has descriptors left");
    }

    #[test]
    fn extra_certificates_must_be_there_and_be_some() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path(), Path::new("/nowhere/ca.pem")] {
            let config = HttpConfig {
                extra_root_certs: Some(path.into()),
                ..HttpConfig::default()
            };
            let error = HttpClient::new(&config).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Configuration);
            assert!(error.message.contains(path.to_str().unwrap()), "{error}");
        }
    }
}
