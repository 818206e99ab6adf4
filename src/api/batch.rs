//! `batch`: several commands in one request.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::ApiError;
use super::call::{CommandReply, run};
use super::requests::BatchRequest;
use super::results::BatchResult;
use crate::plane::SharedPlane;

/// Runs commands one after the other, or side by side. A failed command is answered in its place and the others go
/// on.
pub(super) async fn batch(
    plane: &SharedPlane,
    request: BatchRequest,
) -> Result<BatchResult, ApiError> {
    let max = plane.api.load().batch_max;
    if request.commands.is_empty() || request.commands.len() > max {
        return Err(ApiError::bad_request(format!("`commands` must hold 1 to {max} commands")));
    }
    let mut replies = Vec::with_capacity(request.commands.len());
    if !request.parallel {
        for command in request.commands {
            replies.push(run(plane, command).await);
        }
        return Ok(BatchResult { replies });
    }
    let mut tasks = JoinSet::new();
    for (index, command) in request.commands.into_iter().enumerate() {
        let plane = Arc::clone(plane);
        tasks.spawn(async move { (index, run(&plane, command).await) });
    }
    let mut answered = Vec::with_capacity(tasks.len());
    while let Some(task) = tasks.join_next().await {
        answered.push(task.map_err(|_| ApiError::unexpected_answer())?);
    }
    answered.sort_unstable_by_key(|(index, _): &(usize, CommandReply)| *index);
    replies.extend(answered.into_iter().map(|(_, reply)| reply));
    Ok(BatchResult { replies })
}
