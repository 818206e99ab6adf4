//! Stored templates and their versions.
//!
//! A changed document gets the next version, an equal one none; versions are never changed, so a notification that waits is
//! rendered with what it was sent with. Compiled templates are kept for as long as they are used.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::kinds::DeliveryChannel;
use super::template::{Rendered, Template, TemplateError};
use super::{Notifications, NotifyError, now_ms};
use crate::store::Arg;

/// Compiled templates that are kept; when there are more, all are compiled anew.
const COMPILED_MAX: usize = 256;

/// Compiled templates by name and version.
#[derive(Debug, Default)]
pub(super) struct Compiled(Mutex<HashMap<(String, i64), Arc<Template>>>);

/// A template as it is listed.
#[derive(Clone, Debug)]
pub(crate) struct StoredTemplate {
    /// Name.
    pub name: String,
    /// Version, from 1.
    pub version: i64,
    /// SHA-256 of the document.
    pub digest: String,
    /// JSON text of the document.
    pub document: String,
    /// Unix milliseconds.
    pub created_at: i64,
}

/// Which template, and what to put into it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct TemplateUse {
    /// Name.
    pub name: String,
    /// Version.
    pub version: i64,
    /// Values of its variables.
    pub variables: Map<String, Value>,
}

impl From<TemplateError> for NotifyError {
    fn from(error: TemplateError) -> Self {
        Self::Invalid(format!("`document`: {error}"))
    }
}

impl Compiled {
    fn get(&self, name: &str, version: i64) -> Option<Arc<Template>> {
        let compiled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.get(&(name.to_owned(), version)).cloned()
    }

    fn keep(&self, name: &str, version: i64, template: &Arc<Template>) {
        let mut compiled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if compiled.len() >= COMPILED_MAX {
            compiled.clear();
        }
        compiled.insert((name.to_owned(), version), Arc::clone(template));
    }
}

impl Notifications {
    /// Stores a document as the newest version of its name, unless the newest one is equal; its version.
    pub(crate) async fn store_template(&self, document: &Value) -> Result<i64, NotifyError> {
        let text = document.to_string();
        let template = Template::from_json(text.as_bytes())?;
        let work = async {
            let mut transaction = self.store.begin().await?;
            let newest = "SELECT version, digest FROM archmesh_templates WHERE name = $1 ORDER BY version DESC LIMIT 1";
            let rows = transaction.fetch(newest, &[Arg::Text(template.name())]).await?;
            let (version, same) = match rows.first() {
                Some(row) => (row.int(0)?, row.text(1)? == template.digest()),
                None => (0, false),
            };
            if same {
                transaction.roll_back().await?;
                return Ok(version);
            }
            let insert = "INSERT INTO archmesh_templates (name, version, digest, document, created_at) \
                          VALUES ($1, $2, $3, $4, $5)";
            let args = [
                Arg::Text(template.name()),
                Arg::Int(version + 1),
                Arg::Text(template.digest()),
                Arg::Text(&text),
                Arg::Int(now_ms()),
            ];
            transaction.execute(insert, &args).await?;
            transaction.commit().await?;
            Ok(version + 1)
        };
        Ok(self.store.run(work).await?)
    }

    /// All versions of one name, the newest first; without a name the newest version of each.
    pub(crate) async fn list_templates(
        &self,
        name: Option<&str>,
    ) -> Result<Vec<StoredTemplate>, NotifyError> {
        let newest = if name.is_some() {
            ""
        } else {
            "AND version = (SELECT max(version) FROM archmesh_templates o WHERE o.name = archmesh_templates.name)"
        };
        let sql = format!(
            "SELECT name, version, digest, document, created_at FROM archmesh_templates \
             WHERE ($1 = '' OR name = $1) {newest} ORDER BY name, version DESC"
        );
        let rows = self.store.read(sql, &[Arg::Text(name.unwrap_or_default())]).await?;
        let stored = rows.iter().map(|row| {
            Ok(StoredTemplate {
                name: row.text(0)?,
                version: row.int(1)?,
                digest: row.text(2)?,
                document: row.text(3)?,
                created_at: row.int(4)?,
            })
        });
        stored.collect()
    }

    /// The template of a name, in a version or the newest one, ready to be rendered.
    pub(super) async fn template(
        &self,
        name: &str,
        version: Option<i64>,
    ) -> Result<(i64, Arc<Template>), NotifyError> {
        if let Some(version) = version
            && let Some(template) = self.compiled.get(name, version)
        {
            return Ok((version, template));
        }
        let sql = "SELECT version, document FROM archmesh_templates WHERE name = $1 AND ($2 = 0 OR version = $2) \
                   ORDER BY version DESC LIMIT 1";
        let args = [Arg::Text(name), Arg::Int(version.unwrap_or(0))];
        let rows = self.store.read(sql, &args).await?;
        let found = rows.first().map(|row| Ok((row.int(0)?, row.text(1)?)));
        let Some((version, document)) = found.transpose().map_err(NotifyError::Store)? else {
            return Err(NotifyError::Invalid(format!(
                "there is no template `{name}` in that version"
            )));
        };
        if let Some(template) = self.compiled.get(name, version) {
            return Ok((version, template));
        }
        let template = Arc::new(Template::from_json(document.as_bytes())?);
        self.compiled.keep(name, version, &template);
        Ok((version, template))
    }

    /// What each delivery channel would get of a document or a stored template, or why it would get nothing.
    pub(crate) async fn preview(
        &self,
        source: Result<&Value, (&str, Option<i64>)>,
        locale: Option<&str>,
        variables: &Map<String, Value>,
    ) -> Result<Value, NotifyError> {
        let template = match source {
            Ok(document) => Arc::new(Template::from_json(document.to_string().as_bytes())?),
            Err((name, version)) => self.template(name, version).await?.1,
        };
        let mut answer = Map::new();
        for (channel, rendered) in template.preview(locale, variables) {
            let shown = match rendered {
                Ok(rendered) => shown(&rendered),
                Err(error) => json!({"error": error.to_string()}),
            };
            answer.insert(channel.as_str().to_owned(), shown);
        }
        Ok(Value::Object(answer))
    }
}

/// A rendered text as JSON.
fn shown(rendered: &Rendered) -> Value {
    use super::template::Body;
    let mut shown = match &rendered.body {
        Body::InApp { title, message } | Body::Webhook { title, message } => {
            json!({"title": title, "message": message})
        }
        Body::Email { subject, text, html } => {
            json!({"subject": subject, "text": text, "html": html})
        }
        Body::WebPush { title, body } => json!({"title": title, "body": body}),
        Body::Sms { text } => json!({"text": text}),
    };
    shown["locale"] = rendered.locale.clone().into();
    if let Some(action) = &rendered.action {
        shown["action"] = json!(action);
    }
    shown
}

/// Title and message of the inbox, as content of a notification.
pub(super) fn content(
    template: &Template,
    locale: Option<&str>,
    variables: &Map<String, Value>,
) -> Result<(String, Value), NotifyError> {
    let rendered = template
        .render(locale, DeliveryChannel::InApp, variables)
        .map_err(|error| NotifyError::Invalid(format!("`template`: {error}")))?;
    let mut content = shown(&rendered);
    let locale = rendered.locale;
    if let Some(members) = content.as_object_mut() {
        members.remove("locale");
    }
    Ok((locale, content))
}
