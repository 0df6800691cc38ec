//! The way to an `https` address through a proxy.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpStream;
use tower_service::Service;

use super::client::BoxError;
use super::provider::deepest;
use crate::error::{ErrorKind, ProviderError};

/// Hosts that no proxy can reach for us.
const THIS_MACHINE: &str = "localhost,127.0.0.0/8,::1";

/// TCP to a host, or to a proxy that leads there.
#[derive(Clone, Debug)]
pub(super) struct Proxied {
    tcp: HttpConnector,
    proxies: Arc<Matcher>,
}

impl Proxied {
    /// Through `proxy`, unless the host is one of `except`.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) when the proxy's address is not one of an HTTP proxy.
    pub(super) fn new(
        tcp: HttpConnector,
        proxy: Option<&SecretString>,
        except: &str,
    ) -> Result<Self, ProviderError> {
        let address = proxy.map_or("", |proxy| proxy.expose_secret().trim());
        let proxies = || Matcher::builder().https(address);
        if proxy.is_some() {
            // The matcher leaves out what it cannot read, which would mean no proxy at all.
            let anywhere = proxies()
                .build()
                .intercept(&Uri::from_static("https://host.example"));
            let usable = anywhere.is_some_and(|proxy| proxy.uri().scheme() == Some(&Scheme::HTTP));
            if !usable {
                // It may hold a password, so it is not repeated.
                let message = "the address of the proxy is not one of an HTTP proxy, such as http://proxy:3128";
                return Err(ProviderError::new(ErrorKind::Configuration, message));
            }
        }
        let proxies = proxies().no(format!("{THIS_MACHINE},{except}")).build();
        Ok(Self {
            tcp,
            proxies: Arc::new(proxies),
        })
    }
}

impl Service<Uri> for Proxied {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.intercept(&to) else {
            let connecting = self.tcp.call(to);
            return Box::pin(async move { connecting.await.map_err(Into::into) });
        };
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp.clone());
        if let Some(login) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(login.clone());
        }
        let connecting = tunnel.call(to);
        Box::pin(async move {
            let connected = connecting.await;
            connected.map_err(|error| ProxyFailed::new(&proxy, &error).into())
        })
    }
}

/// Which proxy failed, without its user and password, and why.
#[derive(Debug)]
struct ProxyFailed {
    proxy: String,
    why: String,
}

impl ProxyFailed {
    fn new(proxy: &Intercept, error: &(dyn Error + 'static)) -> Self {
        Self {
            proxy: proxy
                .uri()
                .authority()
                .map(ToString::to_string)
                .unwrap_or_default(),
            why: deepest(error),
        }
    }
}

impl fmt::Display for ProxyFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the proxy {} led nowhere: {}", self.proxy, self.why)
    }
}

impl Error for ProxyFailed {}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxied(proxy: &str, except: &str) -> Result<Proxied, ProviderError> {
        let proxy = SecretString::from(proxy);
        Proxied::new(HttpConnector::new(), Some(&proxy), except)
    }

    #[test]
    fn a_proxy_is_for_https_and_for_other_machines() {
        let proxied = proxied("http://me:s3cret@proxy:3128", "intern.example, 10.0.0.0/8").unwrap();
        let through = |uri: &'static str| {
            let proxy = proxied.proxies.intercept(&Uri::from_static(uri));
            proxy.map(|proxy| proxy.uri().to_string())
        };
        assert_eq!(
            through("https://api.example/v1").as_deref(),
            Some("http://proxy:3128/")
        );
        for direct in [
            "http://api.example/v1",
            "https://intern.example",
            "https://llm.intern.example:8443/v1",
            "https://10.1.2.3",
            "https://localhost:8443",
            "https://127.0.0.1",
            "https://[::1]:8443",
        ] {
            assert_eq!(through(direct), None, "{direct}");
        }
        assert!(!format!("{proxied:?}").contains("s3cret"));
    }

    #[test]
    fn what_is_no_http_proxy_is_told_without_its_password() {
        for wrong in [
            "",
            "socks5://me:s3cret@proxy:1080",
            "https://me:s3cret@proxy:443",
            "ftp://me:s3cret@proxy",
            "http://me:s3cret@pro xy",
        ] {
            let error = proxied(wrong, "*").unwrap_err();
            assert_eq!(error.kind, ErrorKind::Configuration, "{wrong}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        // No scheme means this one.
        assert!(proxied("proxy:3128", "*").is_ok());
    }
}
