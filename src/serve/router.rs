//! Routes, and what holds for all of them: keys, ids of requests, sizes of bodies, errors as objects.
//!
//! Contract: whatever a request is, its answer is JSON, or the page, or an empty 200. What is not under
//! `/v1` is open where it says nothing of the model's work: the page, `/health` and `/metrics`. Work on a body
//! is done off the threads that serve connections, and a panic in it is that request's failure alone.

use super::answer::{Asked, Shape, respond};
use super::error::ApiError;
use super::{App, chat, completions, playground, tokens};
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequest, MatchedPath, Path, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// The longest body: a prompt of some million tokens.
const MOST_BODY_BYTES: usize = 16 << 20;

/// A body must arrive within this time.
const BODY_TIME: Duration = Duration::from_secs(60);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

type Answer<T> = Result<T, ApiError>;

/// Returns all routes of a server. Browsers may call it from pages of these origins.
pub(crate) fn router(app: Arc<App>, origins: Vec<HeaderValue>) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(text_completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .route("/playground/problems", get(problems))
        .route("/playground/prompt", post(prompt))
        .route("/playground/judge", post(judge))
        .layer(from_fn_with_state(Arc::clone(&app), guard));
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID]);
    guarded
        .route("/", get(page))
        .route("/health", get(health))
        .route("/v1/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(async |request: Request| ApiError::no_such_path(request.uri().path()))
        .method_not_allowed_fallback(async |request: Request| {
            let what = format!("{} is not for {}", request.uri().path(), request.method());
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, what)
        })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(cors)
        .layer(DefaultBodyLimit::max(MOST_BODY_BYTES))
        .layer(from_fn_with_state(Arc::clone(&app), account))
        .with_state(app)
}

fn panicked(_panic: Box<dyn Any + Send>) -> Response {
    ApiError::internal("answering this request panicked").into_response()
}

/// Admits only who has a key.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.keys.admit(request.headers()) {
        return next.run(request).await;
    }
    ApiError::wrong_key().into_response()
}

/// Counts answers, and gives each the id of its request.
async fn account(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let handler = path.map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let given = request.headers().get(REQUEST_ID).filter(|id| id.len() <= 200).cloned();
    let id = given.or_else(|| format!("{:016x}", rand::random::<u64>()).parse().ok());
    let mut response = next.run(request).await;
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    app.shared.metrics.answered(&handler, method.as_str(), response.status().as_u16());
    response
}

/// A body of JSON, as bytes.
struct JsonBody(Bytes);

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, app: &Arc<App>) -> Answer<Self> {
        let kind = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.as_bytes());
        let kind = kind.map(|kind| kind.split(|&byte| byte == b';').next().unwrap_or_default());
        let is_json = |kind: &[u8]| kind.trim_ascii().eq_ignore_ascii_case(b"application/json");
        // Simple clients leave it out; a page of another site cannot, but for an empty one.
        let is_ours = request.uri().path().starts_with("/playground/");
        if !kind.map_or(!is_ours, is_json) {
            let expected = "the body must have the Content-Type application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, expected));
        }
        let too_long = || {
            let most = format!("the body has more than {MOST_BODY_BYTES} bytes");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, most)
        };
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > MOST_BODY_BYTES) {
            return Err(too_long());
        }
        match tokio::time::timeout(BODY_TIME, Bytes::from_request(request, app)).await {
            Ok(Ok(body)) => Ok(Self(body)),
            Ok(Err(error)) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_long()),
            Ok(Err(error)) => Err(ApiError::bad(format!("reading the body: {error}"))),
            Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body came too slowly")),
        }
    }
}

/// Works on a body where it does not hold up connections.
async fn aside<T: Send + 'static>(
    app: &Arc<App>,
    JsonBody(body): JsonBody,
    work: impl FnOnce(&App, &[u8]) -> Answer<T> + Send + 'static,
) -> Answer<T> {
    let app = Arc::clone(app);
    let work = tokio::task::spawn_blocking(move || work(&app, &body));
    work.await.unwrap_or_else(|_| Err(ApiError::internal("working on this request panicked")))
}

async fn completions_of<S: Shape>(
    app: Arc<App>,
    body: JsonBody,
    read: fn(&App, &[u8], Instant) -> Answer<Asked<S>>,
) -> Answer<Response> {
    let arrived = Instant::now();
    let asked = aside(&app, body, move |app, body| read(app, body, arrived)).await?;
    respond(&app, asked).await
}

async fn chat_completions(State(app): State<Arc<App>>, body: JsonBody) -> Answer<Response> {
    completions_of(app, body, chat::read).await
}

async fn text_completions(State(app): State<Arc<App>>, body: JsonBody) -> Answer<Response> {
    completions_of(app, body, completions::read).await
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [app.model.card()]}))
}

async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Answer<Json<Value>> {
    if id == app.model.name {
        return Ok(Json(app.model.card()));
    }
    Err(ApiError::no_such_model(&id, &app.model.name))
}

async fn tokenize(State(app): State<Arc<App>>, body: JsonBody) -> Answer<Json<Value>> {
    aside(&app, body, tokens::tokenize).await.map(Json)
}

async fn detokenize(State(app): State<Arc<App>>, body: JsonBody) -> Answer<Json<Value>> {
    aside(&app, body, tokens::detokenize).await.map(Json)
}

async fn tokenizer_info(State(app): State<Arc<App>>) -> Json<Value> {
    Json(tokens::info(&app))
}

async fn health(State(app): State<Arc<App>>) -> Answer<()> {
    if app.shared.desk.is_draining() {
        return Err(super::job::Failure::ShuttingDown.into());
    }
    Ok(())
}

async fn metrics(State(app): State<Arc<App>>) -> Answer<Response> {
    let load = app.shared.desk.load();
    let text = app.shared.metrics.text(load).map_err(|e| ApiError::internal(&e.to_string()))?;
    let kind =
        [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    Ok((kind, text).into_response())
}

async fn page() -> Response {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, playground::CONTENT_SECURITY_POLICY),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    (headers, Html(playground::PAGE)).into_response()
}

async fn problems(State(app): State<Arc<App>>) -> Json<Value> {
    Json(app.playground.problems())
}

async fn prompt(State(app): State<Arc<App>>, body: JsonBody) -> Answer<Json<Value>> {
    aside(&app, body, |app, body| app.playground.prompt(body)).await.map(Json)
}

async fn judge(State(app): State<Arc<App>>, body: JsonBody) -> Answer<Json<Value>> {
    aside(&app, body, |app, body| app.playground.judge(body)).await.map(Json)
}
