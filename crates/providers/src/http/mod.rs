//! HTTP: one pooled client for all providers, and the provider that drives any wire format over it.

mod client;
mod provider;
mod proxy;
mod stream;
mod tls;

pub use client::{HttpClient, HttpConfig};
pub use provider::{HttpProvider, Timeouts};
