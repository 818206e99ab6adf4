//! The table of methods: path, request, result and function, once.
//!
//! Routes, the commands of `batch` and the OpenAPI paths are all made from it, so none of them can be forgotten.

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequest, Request, State};
use axum::http::Response;
use axum::response::IntoResponse;
use axum::routing::post;
use gateway_core::error::ErrorCode;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use super::error::{ErrorBody, ErrorEnvelope};
use super::notification_requests::{
    AnalyticsRequest, ContactsRequest, DeadLettersRequest, InboxRequest, MarkRequest,
    NotificationsRequest, PreferencesRequest, PreviewRequest, RetryRequest, StatusRequest,
    TemplateStoreRequest, TemplatesRequest,
};
use super::notification_results::{
    AnalyticsResult, ContactsResult, DeadLettersResult, InboxResult, MarkedResult,
    NotificationResult, NotificationsResult, PreferencesResult, PreviewResult, RetriedResult,
    StatusResult, TemplateVersionResult, TemplatesResult,
};
use super::requests::{
    BatchRequest, BroadcastRequest, ChannelRequest, ChannelsRequest, ConnectionRequest,
    ConnectionsRequest, DisconnectRequest, HistoryRequest, InfoRequest, LargeDataRequest,
    PublishRequest, RevokeRequest, SubscriptionRequest, UserStatusRequest,
};
use super::results::{
    AffectedResult, BatchResult, BroadcastResult, ChannelsResult, ConnectionResult,
    ConnectionsResult, HistoryResult, InfoResult, LargeDataResult, PositionResult, PresenceResult,
    PresenceStatsResult, Reply, UserStatusResult,
};
use super::{ApiError, batch, connections, large_data, notifications, publish, reads, users};
use crate::notify::NotificationRequest;
use crate::plane::SharedPlane;

/// A request body, read within its bounds and strictly typed.
#[derive(Debug)]
pub(super) struct Call<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<SharedPlane> for Call<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, plane: &SharedPlane) -> Result<Self, ApiError> {
        let max = plane.api.load().body_bytes_max;
        let too_large = || {
            ApiError::new(
                ErrorCode::MessageTooLarge,
                format!("the body is larger than `api.body_bytes_max`, {max}"),
            )
        };
        let body = request.into_body();
        // A length that is announced need not be read first.
        if body.size_hint().lower() > max as u64 {
            return Err(too_large());
        }
        match Limited::new(body, max).collect().await {
            Ok(body) => parse(&body.to_bytes()).map(Self),
            Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
            Err(_) => Err(ApiError::bad_request("the body did not arrive whole")),
        }
    }
}

/// Reads a body; an empty one stands for `{}`.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    // Checked once as a whole: from bytes, serde_json checks string by string.
    let text = simdutf8::basic::from_utf8(body)
        .map_err(|_| ApiError::bad_request("malformed request: the body is not UTF-8"))?;
    serde_json::from_str(text)
        .map_err(|error| ApiError::bad_request(format!("malformed request: {error}")))
}

/// The result or the error, as it is answered.
pub(super) fn answer<T: Serialize>(outcome: Result<T, ApiError>) -> Response<Body> {
    match outcome {
        Ok(result) => axum::Json(Reply { result }).into_response(),
        Err(error) => error.into_response(),
    }
}

macro_rules! methods {
    ($(
        $(#[doc = $doc:literal])+
        $variant:ident $name:ident($path:literal, $request:ident) -> $result:ident = $function:path;
    )+) => {
        /// One command of a batch: `{"<method>": {..}}`.
        #[allow(clippy::large_enum_variant, reason = "there are as many as commands in a batch")]
        #[derive(Debug, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub(crate) enum Command {
            $($(#[doc = $doc])+ $variant($request),)+
        }

        /// Answer to one command of a batch: `{"<method>": {..}}` or `{"error": {..}}`.
        #[allow(clippy::large_enum_variant, reason = "there are as many as commands in a batch")]
        #[derive(Debug, Serialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub(crate) enum CommandReply {
            $($(#[doc = $doc])+ $variant($result),)+
            /// What went wrong.
            Error(ErrorBody),
        }

        /// Runs one command of a batch.
        pub(super) async fn run(plane: &SharedPlane, command: Command) -> CommandReply {
            let outcome = match command {
                $(Command::$variant(request) => $function(plane, request).await.map(CommandReply::$variant),)+
            };
            outcome.unwrap_or_else(|error| CommandReply::Error(error.body()))
        }

        $(
            $(#[doc = $doc])+
            #[utoipa::path(
                post, path = $path, request_body = $request,
                responses(
                    (status = 200, description = "The result, or `{\"error\":{..}}`", body = Reply<$result>),
                    (status = 401, description = "No valid API key", body = ErrorEnvelope),
                ),
                security(("api_key" = [])),
            )]
            async fn $name(State(plane): State<SharedPlane>, Call(request): Call<$request>) -> Response<Body> {
                answer($function(&plane, request).await)
            }
        )+

        /// Several commands in one request.
        #[utoipa::path(
            post, path = "/api/batch", request_body = BatchRequest,
            responses(
                (status = 200, description = "The result, or `{\"error\":{..}}`", body = Reply<BatchResult>),
                (status = 401, description = "No valid API key", body = ErrorEnvelope),
            ),
            security(("api_key" = [])),
        )]
        async fn run_batch(State(plane): State<SharedPlane>, Call(request): Call<BatchRequest>) -> Response<Body> {
            answer(batch::batch(&plane, request).await)
        }

        /// Routes of all methods.
        pub(super) fn methods() -> Router<SharedPlane> {
            Router::new()$(.route($path, post($name)))+.route("/api/batch", post(run_batch))
        }

        /// Paths and schemas of all methods.
        #[derive(Debug, OpenApi)]
        #[openapi(paths($($name,)+ run_batch), components(schemas(ErrorEnvelope)))]
        pub(super) struct Paths;
    };
}

methods! {
    /// Publishes to a channel.
    Publish publish_one("/api/publish", PublishRequest) -> PositionResult = publish::publish;
    /// Publishes the same to several channels.
    Broadcast broadcast("/api/broadcast", BroadcastRequest) -> BroadcastResult = publish::broadcast;
    /// Publishes a large payload as checksummed chunks.
    LargeData publish_large("/api/large_data", LargeDataRequest) -> LargeDataResult = large_data::large_data;
    /// Subscribes a user's connections to a channel.
    Subscribe subscribe("/api/subscribe", SubscriptionRequest) -> AffectedResult = users::subscribe;
    /// Unsubscribes a user's connections from a channel.
    Unsubscribe unsubscribe("/api/unsubscribe", SubscriptionRequest) -> AffectedResult = users::unsubscribe;
    /// Ends a user's connections.
    Disconnect disconnect("/api/disconnect", DisconnectRequest) -> AffectedResult = users::disconnect;
    /// Refuses tokens from now on and ends the connections that hold one.
    Revoke revoke("/api/revoke", RevokeRequest) -> AffectedResult = users::revoke;
    /// Online state of users.
    UserStatus user_status("/api/user_status", UserStatusRequest) -> UserStatusResult = users::user_status;
    /// Members of a channel.
    Presence presence("/api/presence", ChannelRequest) -> PresenceResult = reads::presence;
    /// Number of members of a channel.
    PresenceStats presence_stats("/api/presence_stats", ChannelRequest) -> PresenceStatsResult =
        reads::presence_stats;
    /// Publications kept in a channel.
    History history("/api/history", HistoryRequest) -> HistoryResult = reads::history;
    /// Forgets the publications of a channel.
    HistoryRemove history_remove("/api/history_remove", ChannelRequest) -> PositionResult = reads::history_remove;
    /// Channels of the node.
    Channels channels("/api/channels", ChannelsRequest) -> ChannelsResult = reads::channels;
    /// Connections of the node, in pages.
    Connections list_connections("/api/connections", ConnectionsRequest) -> ConnectionsResult =
        connections::connections;
    /// One connection in detail.
    Connection inspect("/api/connection", ConnectionRequest) -> ConnectionResult = connections::connection;
    /// Sends a notification.
    Notify notify("/api/v1/notifications", NotificationRequest) -> NotificationResult = notifications::send;
    /// Sends several notifications, each with its own outcome.
    NotifyMany notify_many("/api/v1/notifications/batch", NotificationsRequest) -> NotificationsResult =
        notifications::send_many;
    /// A page of a user's inbox.
    Inbox inbox("/api/v1/notifications/list", InboxRequest) -> InboxResult = notifications::list;
    /// Marks items of a user's inbox as seen, read, received or archived.
    MarkInbox mark_inbox("/api/v1/notifications/mark", MarkRequest) -> MarkedResult = notifications::mark;
    /// A user's preferences, after changing them when a patch is given.
    Preferences preferences("/api/v1/notifications/preferences", PreferencesRequest) -> PreferencesResult =
        notifications::preferences;
    /// A user's addresses, after changing those that are given.
    Contacts contacts("/api/v1/notifications/contacts", ContactsRequest) -> ContactsResult = notifications::contacts;
    /// Stores a template as a new version.
    StoreTemplate store_template("/api/v1/notifications/templates/store", TemplateStoreRequest) ->
        TemplateVersionResult = notifications::store_template;
    /// Stored templates.
    Templates templates("/api/v1/notifications/templates", TemplatesRequest) -> TemplatesResult =
        notifications::templates;
    /// What a template makes for each delivery channel.
    PreviewTemplate preview_template("/api/v1/notifications/templates/preview", PreviewRequest) -> PreviewResult =
        notifications::preview;
    /// What became of a notification.
    NotificationStatus notification_status("/api/v1/notifications/status", StatusRequest) -> StatusResult =
        notifications::status;
    /// Deliveries that were given up.
    DeadLetters dead_letters("/api/v1/notifications/dead_letters", DeadLettersRequest) -> DeadLettersResult =
        notifications::dead_letters;
    /// Tries given-up deliveries again.
    RetryDeliveries retry_deliveries("/api/v1/notifications/retry", RetryRequest) -> RetriedResult =
        notifications::retry;
    /// Sums of notifications and deliveries over a time.
    Analytics analytics("/api/v1/notifications/analytics", AnalyticsRequest) -> AnalyticsResult =
        notifications::analytics;
    /// The node and its size.
    Info info("/api/info", InfoRequest) -> InfoResult = connections::info;
}
