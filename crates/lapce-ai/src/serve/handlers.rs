//! What the daemon does with each type of request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lapce_ai_proto::ai::{
    AIRequest, AIResponse, EmbeddingsRequest, EmbeddingsResponse, ModelAlias, ModelList,
    ModelListError, ModelsRequest, TokenCount,
};
use lapce_ai_proto::status::Status;
use lapce_ai_proto::{Class, ErrorBody, ErrorCode, MessageType};
use lapce_ai_providers::{
    Answer, Bill, Caller, ErrorKind, Event, Gateway, NanoUsd, NoAnswer, Plan, Pool, Priority,
    Receipt, Trail,
};
use lapce_ai_server::{OwnedRequest, Reply, Request, Responder, Server, ServerHandle};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::cut::Cut;
use super::providers::Providers;
use super::{attempts, spend, wire};
use crate::config::Config;
use crate::ledger::Keeper;

/// Room for an item before it has to grow, in bytes.
const ITEM_CAPACITY: usize = 512;

/// Makes a chat of a request's body.
type ReadChat = fn(&[u8]) -> Result<AIRequest, ErrorBody>;

/// What handlers share.
#[derive(Debug)]
pub(super) struct App {
    config: Config,
    stops_when_idle: Option<Duration>,
    providers: Providers,
    gateway: Gateway,
    ledger: Option<Arc<Keeper>>,
    server: ServerHandle,
    runtime: Handle,
    begun: Instant,
}

/// What requests are answered by.
impl AsRef<Pool> for App {
    fn as_ref(&self) -> &Pool {
        self.providers.pool()
    }
}

impl App {
    pub(super) fn new(
        config: Config,
        stops_when_idle: Option<Duration>,
        providers: Providers,
        (gateway, ledger): (Gateway, Option<Arc<Keeper>>),
        server: ServerHandle,
        runtime: Handle,
        begun: Instant,
    ) -> Self {
        Self {
            config,
            stops_when_idle,
            providers,
            gateway,
            ledger,
            server,
            runtime,
            begun,
        }
    }
}

/// Gives each type its handler.
pub(super) fn register(server: &mut Server, app: &Arc<App>) {
    server.handle(MessageType::ECHO, |request, reply| {
        reply.send_body(request.into_body());
    });
    let shared = Arc::clone(app);
    server.handle(MessageType::STATUS, move |_, reply| {
        send_json(reply, &shared.status());
    });
    let shared = Arc::clone(app);
    server.handle(MessageType::SHUTDOWN, move |request, reply| {
        shared.shutdown(&request, reply);
    });
    let shared = Arc::clone(app);
    server.handle_async(MessageType::TOKEN_COUNT, move |request, responder| {
        let app = Arc::clone(&shared);
        async move { answer(responder, app.count(request).await).await }
    });
    let shared = Arc::clone(app);
    server.handle_async(MessageType::EMBEDDINGS, move |request, responder| {
        let app = Arc::clone(&shared);
        async move { answer(responder, app.embeddings(request).await).await }
    });
    let shared = Arc::clone(app);
    server.handle_async(MessageType::MODELS, move |request, responder| {
        Arc::clone(&shared).models(request, responder)
    });
    let chats: [(MessageType, ReadChat); 3] = [
        (MessageType::CHAT, wire::parse),
        (MessageType::AUTOCOMPLETE, |body| {
            Ok(wire::autocomplete(wire::parse(body)?))
        }),
        (MessageType::FILE_ANALYSIS, |body| {
            Ok(wire::file_analysis(wire::parse(body)?))
        }),
    ];
    for (ty, read) in chats {
        let shared = Arc::clone(app);
        server.handle_async(ty, move |request, responder| {
            Arc::clone(&shared).chat(request, responder, read)
        });
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct ShutdownRequest {
    drain_ms: Option<u64>,
}

impl App {
    fn status(&self) -> Status {
        let (connections, counters) = self.server.status();
        Status {
            name: concat!("lapce-ai ", env!("CARGO_PKG_VERSION")).to_owned(),
            pid: std::process::id(),
            uptime_secs: self.begun.elapsed().as_secs(),
            socket: self.config.ipc.socket_path.display().to_string(),
            config: self
                .config
                .file
                .as_ref()
                .map(|file| file.display().to_string()),
            stops_when_idle_secs: self.stops_when_idle.map(|idle| idle.as_secs()),
            connections,
            reactors: self.server.reactors(),
            tasks: self.runtime.metrics().num_alive_tasks() as u64,
            providers: spend::providers(self.providers.status(), self.gateway.spend()),
            default_model: self.providers.default_model().map(str::to_owned),
            counters,
            pool: self.server.pool().into(),
            budgets: spend::budgets(self.gateway.spend()),
            cache: self.gateway.cache().map(spend::cache),
            ledger: self.ledger.as_deref().map(spend::ledger),
        }
    }

    /// Users in `allowed_uids` may use the daemon, and not take it away from the others.
    fn shutdown(&self, request: &Request<'_>, reply: Reply<'_>) {
        let uid = request.peer().credentials.uid;
        if uid != 0 && uid != rustix::process::geteuid().as_raw() {
            let text = format!(
                "uid {uid} may use this daemon, and only its own user and root may stop it"
            );
            return reply.fail(ErrorBody::new(ErrorCode::PermissionDenied, text));
        }
        let parsed = match request.body() {
            [] => Ok(ShutdownRequest::default()),
            body => wire::parse(body),
        };
        match parsed {
            Ok(ShutdownRequest { drain_ms }) => {
                reply.send(b"{}");
                let drain = drain_ms.map_or(self.config.ipc.drain_timeout, Duration::from_millis);
                tracing::info!(
                    process = request.peer().credentials.pid,
                    drain_secs = drain.as_secs_f64(),
                    "told to stop"
                );
                self.server.shutdown(drain);
            }
            Err(error) => reply.fail(error),
        }
    }

    /// Asks all providers at once; those that cannot say are listed with the reason.
    async fn models(self: Arc<Self>, request: OwnedRequest, responder: Responder) {
        let parsed = match &*request.body {
            [] => Ok(ModelsRequest::default()),
            body => wire::parse(body),
        };
        drop(request);
        let wanted = match parsed {
            Ok(ModelsRequest { provider }) => provider,
            Err(error) => return responder.fail(error),
        };
        let mut asked = JoinSet::new();
        for (at, entry) in self.providers.named(wanted.as_deref()).enumerate() {
            let (name, provider) = (entry.name.clone(), Arc::clone(&entry.provider));
            asked.spawn(async move { (at, name, provider.models().await) });
        }
        if let (Some(name), true) = (&wanted, asked.is_empty()) {
            let text = format!("no provider is called `{name}`");
            return responder.fail(ErrorBody::new(ErrorCode::NoProvider, text));
        }
        let mut answers = asked.join_all().await;
        answers.sort_unstable_by_key(|(at, ..)| *at);
        let mut list = ModelList::default();
        // One provider's list is about that provider alone.
        if wanted.is_none() {
            let alias = |(name, model): (&str, &str)| ModelAlias {
                name: name.to_owned(),
                model: model.to_owned(),
            };
            list.aliases = self.providers.aliases().map(alias).collect();
        }
        for (_, name, answer) in answers {
            match answer {
                Ok(models) => list
                    .models
                    .extend(models.into_iter().map(|model| wire::model(model, &name))),
                Err(error) => {
                    let message = wire::provider_error(&error).message;
                    list.errors.push(ModelListError {
                        provider: name,
                        message,
                    });
                }
            }
        }
        answer_json(responder, &list).await;
    }

    /// As the provider counts, or an estimate where it does not. `held` counts against the budget until then.
    async fn count(&self, held: OwnedRequest) -> Result<TokenCount, ErrorBody> {
        let parsed: AIRequest = wire::parse(&held.body)?;
        let estimate = wire::estimated_tokens(&parsed);
        let plan = self.plan(&parsed.model)?;
        let chat = wire::chat_request(parsed, String::new())?;
        let caller = caller(&held);
        match self
            .providers
            .pool()
            .count_tokens(&plan, chat, caller)
            .await
        {
            Ok(answer) => Ok(TokenCount {
                tokens: answer.given,
                exact: true,
            }),
            Err(failed) if failed.error.kind == ErrorKind::Unsupported => Ok(TokenCount {
                tokens: estimate,
                exact: false,
            }),
            Err(failed) => Err(no_answer(&failed)),
        }
    }

    async fn embeddings(&self, held: OwnedRequest) -> Result<EmbeddingsResponse, ErrorBody> {
        let parsed: EmbeddingsRequest = wire::parse(&held.body)?;
        let plan = self.plan(&parsed.model)?;
        let request = wire::embedding_request(parsed, String::new())?;
        let caller = caller(&held);
        let pool = self.providers.pool();
        let answer = self.gateway.embed(pool, plan, request, caller).await;
        let (answer, bill) = answer.map_err(|failed| no_answer(&failed))?;
        let Answer {
            given,
            provider,
            model,
            trail,
        } = answer;
        tell_detour(&trail);
        Ok(wire::embeddings(given, &provider, &model, bill))
    }

    fn plan(&self, model: &str) -> Result<Plan, ErrorBody> {
        let plan = self.providers.plan(model);
        plan.map_err(|error| wire::catalog_error(&error))
    }

    async fn chat(self: Arc<Self>, request: OwnedRequest, responder: Responder, read: ReadChat) {
        let (ty, connection, begun) = (request.ty, request.connection(), Instant::now());
        let outcome = match read(&request.body) {
            Ok(parsed) => self.answer(parsed, request, responder).await,
            Err(error) => {
                let code = error.code;
                responder.fail(error);
                Err(code)
            }
        };
        // The messages of errors may repeat a prompt; their codes do not.
        let code = outcome.err().map(ErrorCode::name);
        let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(kind = %ty, connection, millis, code, "request ended");
    }

    /// `held` is the request as it came. It counts against the budget, and so stands for what was made of it, until the
    /// provider has it: an answer may take minutes.
    async fn answer(
        self: &Arc<Self>,
        request: AIRequest,
        held: OwnedRequest,
        responder: Responder,
    ) -> Result<(), ErrorCode> {
        let trail = Trail::default();
        let mut cut = Cut::new(&trail, held.deadline.map(Into::into));
        let outcome = self.answer_on(&trail, request, held, responder).await;
        if outcome != Err(ErrorCode::Cancelled) {
            cut.ended();
        }
        outcome
    }

    async fn answer_on(
        self: &Arc<Self>,
        trail: &Trail,
        request: AIRequest,
        held: OwnedRequest,
        responder: Responder,
    ) -> Result<(), ErrorCode> {
        let failed = |responder: Responder, error: ErrorBody| {
            let code = error.code;
            responder.fail(error);
            Err(code)
        };
        let (caller, cache) = (caller(&held), request.cache);
        let asked = self.plan(&request.model);
        let asked = asked.and_then(|plan| Ok((plan, wire::chat_request(request, String::new())?)));
        let (plan, chat) = match asked {
            Ok(asked) => asked,
            Err(error) => return failed(responder, error),
        };
        let streamed = chat.stream;
        let continues = plan.continues;
        let answer = self
            .gateway
            .chat(self, plan, chat, caller, cache, trail)
            .await;
        let (answer, receipt) = match answer {
            Ok(answer) => answer,
            Err(error) => return failed(responder, no_answer(&error)),
        };
        let Answer {
            given: mut stream,
            provider,
            model,
            ..
        } = answer;
        // What may be gone on with keeps the request to its end.
        let _held = continues.then_some(held);
        tell_detour(trail);
        if !streamed {
            return match stream.collect().await {
                Ok(answer) => {
                    let bill = billed(&receipt);
                    let answer = AIResponse {
                        attempts: attempts::list(trail),
                        cost_nano_usd: bill.cost.map(NanoUsd::get),
                        cached: bill.cached,
                        warnings: bill.warnings,
                        ..wire::response(answer, &provider, &model)
                    };
                    answer_json(responder, &answer).await;
                    Ok(())
                }
                Err(error) => failed(responder, attempts::broke_off(&error, trail)),
            };
        }
        let mut responder = responder;
        let mut item = Vec::with_capacity(ITEM_CAPACITY);
        loop {
            let event = match stream.next().await {
                Some(Ok(event)) => event,
                Some(Err(error)) => {
                    let (trail_text, why) = (trail.to_string(), error.kind.name());
                    tracing::info!(trail = ?trail_text, why, "an answer broke off");
                    return failed(responder, attempts::broke_off(&error, trail));
                }
                None => return failed(responder, wire::without_finish(&provider)),
            };
            if let Event::Finish(reason) = event {
                wire::write_finish(&mut item, reason, &attempts::list(trail), &billed(&receipt));
                break;
            }
            if let Event::Continued { .. } = event {
                let trail = trail.to_string();
                tracing::info!(?trail, "another goes on with an answer");
            }
            wire::write_item(&mut item, event, &provider, &model);
            // Nobody wants the answer any more: dropping the stream ends the provider's work, too.
            responder
                .send(&item)
                .await
                .map_err(|_| ErrorCode::Cancelled)?;
        }
        responder
            .answer(&item)
            .await
            .map_err(|_| ErrorCode::Cancelled)?;
        // The client has its answer; what is left is the end of the provider's, so that its connection can be reused.
        while let Some(Ok(_)) = stream.next().await {}
        Ok(())
    }
}

/// Who made the request, as far as the pool wants to know.
fn caller(request: &OwnedRequest) -> Caller {
    Caller {
        deadline: request.deadline.map(Into::into),
        priority: match request.class {
            Class::Interactive => Priority::Interactive,
            Class::Bulk => Priority::Bulk,
            // The server has put the type's own class in the place of `ByType`.
            Class::Normal | Class::ByType => Priority::Normal,
        },
        uid: Some(request.peer().credentials.uid),
    }
}

/// What a complete answer cost.
fn billed(receipt: &Receipt) -> Bill {
    // A complete answer has one.
    receipt.bill().unwrap_or_default()
}

/// Nobody answered, which is told to the log and to the client.
fn no_answer(failed: &NoAnswer) -> ErrorBody {
    let trail = failed.trail.to_string();
    // As a quoted text: a client may name a model as it likes.
    tracing::info!(?trail, "no answer");
    attempts::no_answer(failed)
}

fn tell_detour(trail: &Trail) {
    if !trail.is_plain() {
        let trail = trail.to_string();
        tracing::info!(?trail, "answered by another than the first");
    }
}

fn send_json(reply: Reply<'_>, value: &impl Serialize) {
    match serde_json::to_vec(value) {
        Ok(bytes) => reply.send(&bytes),
        Err(error) => reply.fail(ErrorBody::new(ErrorCode::Internal, error.to_string())),
    }
}

async fn answer(responder: Responder, outcome: Result<impl Serialize, ErrorBody>) {
    match outcome {
        Ok(value) => answer_json(responder, &value).await,
        Err(error) => responder.fail(error),
    }
}

async fn answer_json(responder: Responder, value: &impl Serialize) {
    match serde_json::to_vec(value) {
        // Whoever has gone needs no answer.
        Ok(bytes) => drop(responder.answer(&bytes).await),
        Err(error) => responder.fail(ErrorBody::new(ErrorCode::Internal, error.to_string())),
    }
}
