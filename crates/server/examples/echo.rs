//! The smallest server: `cargo run -p lapce-ai-server --example echo -- /path/to/closed/dir/daemon.sock`
use lapce_ai_proto::MessageType;
use lapce_ai_server::{Options, Server};
use lapce_ai_transport::{Listener, RuntimeDir};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let socket = std::env::args().nth(1).ok_or("usage: echo SOCKET")?;
    let mut server = Server::new(Options::default());
    server.handle(MessageType::ECHO, |request, reply| {
        reply.send_body(request.into_body());
    });
    let runtime = tokio::runtime::Runtime::new()?;
    server
        .start(
            Listener::bind(&RuntimeDir::for_socket(socket))?,
            runtime.handle(),
        )?
        .join();
    Ok(())
}
