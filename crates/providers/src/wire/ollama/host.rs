//! Where a server is, as `OLLAMA_HOST` says it.
//!
//! Source: <https://github.com/ollama/ollama/blob/main/envconfig/config.go>.

/// The base URL that `host` means: scheme and port may be left out, and so may the address. Where a server listens
/// everywhere (0.0.0.0), it is reached on loopback.
pub(crate) fn base_url(host: &str) -> String {
    let host = host.trim().trim_matches(['"', '\'']).trim_end_matches('/');
    let (scheme, rest, usual) = match host.split_once("://") {
        // 80 and 443 go without saying.
        Some((scheme, rest)) => (scheme, rest, ""),
        None => ("http", host, ":11434"),
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    // A colon within brackets is of the address.
    let (address, port) = match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => authority.split_at(at),
        _ => (authority, usual),
    };
    let address = match address {
        "" | "0.0.0.0" => "127.0.0.1",
        "[::]" => "[::1]",
        address => address,
    };
    format!("{scheme}://{address}{port}{path}")
}

#[cfg(test)]
mod tests {
    use super::base_url;

    #[test]
    fn whatever_ollama_understands() {
        for (host, url) in [
            ("127.0.0.1:11434", "http://127.0.0.1:11434"),
            ("", "http://127.0.0.1:11434"),
            (":8080", "http://127.0.0.1:8080"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("0.0.0.0:1", "http://127.0.0.1:1"),
            ("[::]", "http://[::1]:11434"),
            ("[::]:9", "http://[::1]:9"),
            ("[::1]", "http://[::1]:11434"),
            ("box.lan", "http://box.lan:11434"),
            (" \"10.0.0.5\" ", "http://10.0.0.5:11434"),
            ("http://10.0.0.5", "http://10.0.0.5"),
            ("https://ollama.com/", "https://ollama.com"),
            ("https://proxy:8443/ollama/", "https://proxy:8443/ollama"),
        ] {
            assert_eq!(base_url(host), url, "{host}");
        }
    }
}
