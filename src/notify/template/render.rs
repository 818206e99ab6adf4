//! What a delivery channel gets of a template, for one locale and one set of variables.

use serde::{Deserialize, Serialize};

use super::engine::{self, Failure};
use super::error::{Place, RenderError};
use super::field::{Field, Target};
use super::variables::Context;
use super::{LocaleEntry, Template, finish};
use crate::notify::kinds::DeliveryChannel;

/// Where a notification leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Action {
    /// What stands on the button or link.
    pub label: String,
    /// `http` or `https` URL, or a path that begins with `/`.
    pub url: String,
}

/// Finished texts for one delivery channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// Whose texts they are, as the document names it.
    pub locale: String,
    /// Where it leads; none when the template has no action, or its URL begins with a variable that was not given.
    pub action: Option<Action>,
    /// The texts.
    pub body: Body,
}

/// What a delivery channel shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// In the application.
    InApp {
        /// One line.
        title: String,
        /// Plain text.
        message: String,
    },
    /// Mail. Neither text has the action in it unless the template puts it there.
    Email {
        /// One line.
        subject: String,
        /// Plain text.
        text: String,
        /// Whole or part of an HTML document.
        html: Option<String>,
    },
    /// Push to a browser.
    WebPush {
        /// One line.
        title: String,
        /// Plain text.
        body: String,
    },
    /// Request to the customer's server.
    Webhook {
        /// One line.
        title: String,
        /// Plain text.
        message: String,
    },
    /// Text message.
    Sms {
        /// Plain text.
        text: String,
    },
}

/// Renders texts of one locale.
pub(super) struct Renderer<'a> {
    pub(super) template: &'a Template,
    pub(super) entry: &'a LocaleEntry,
    pub(super) context: &'a Context,
}

impl Renderer<'_> {
    /// Everything for one delivery channel, and nothing else: a text that fails stops only those who show it.
    pub(super) fn channel(&self, channel: DeliveryChannel) -> Result<Rendered, RenderError> {
        let body = match channel {
            DeliveryChannel::InApp => {
                Body::InApp { title: self.text(Field::Title)?, message: self.text(Field::Message)? }
            }
            DeliveryChannel::Webhook => Body::Webhook {
                title: self.text(Field::Title)?,
                message: self.text(Field::Message)?,
            },
            DeliveryChannel::Email => Body::Email {
                subject: self.text_or(Field::EmailSubject, Field::Title)?,
                text: self.text_or(Field::EmailText, Field::Message)?,
                html: if self.has(Field::EmailHtml) {
                    Some(self.text(Field::EmailHtml)?)
                } else {
                    None
                },
            },
            DeliveryChannel::WebPush => Body::WebPush {
                title: self.text_or(Field::WebPushTitle, Field::Title)?,
                body: self.text_or(Field::WebPushBody, Field::Message)?,
            },
            DeliveryChannel::Sms => {
                Body::Sms { text: self.text_or(Field::SmsText, Field::Message)? }
            }
        };
        Ok(Rendered { locale: self.entry.name.clone(), action: self.action()?, body })
    }

    fn has(&self, field: Field) -> bool {
        self.template.texts(self.entry).is_some_and(|texts| texts.get(field).is_some())
    }

    fn action(&self) -> Result<Option<Action>, RenderError> {
        let given = |name: &String| self.context.names.contains(name);
        if !self.has(Field::ActionUrl) || !self.entry.action_begins_with.iter().all(given) {
            return Ok(None);
        }
        let label = self.text(Field::ActionLabel)?;
        Ok(Some(Action { label, url: self.text(Field::ActionUrl)? }))
    }

    /// A text of its own, or the one that every delivery channel has. The latter was not written for this place, so
    /// that it is cut instead of refused when it is too long.
    fn text_or(&self, own: Field, common: Field) -> Result<String, RenderError> {
        if self.has(own) {
            return self.text(own);
        }
        Ok(finish::cut(self.text(common)?, own.output_bytes_max()))
    }

    fn text(&self, field: Field) -> Result<String, RenderError> {
        let place = || Place { locale: self.entry.name.clone(), field };
        let name = place().to_string();
        let bytes_max = field.output_bytes_max();
        let too_long = || RenderError::TooLong { place: place(), bytes_max };
        let written = engine::write(&self.template.environment, &name, field, &self.context.value);
        let written = written.map_err(|failure| match failure {
            Failure::TooLong => too_long(),
            Failure::TooMuchWork => RenderError::TooMuchWork { place: place() },
            Failure::Text(line, problem) => RenderError::Text { place: place(), line, problem },
        })?;
        let finished = match field.target() {
            Target::Line => Ok(finish::line(&written)),
            Target::Text => Ok(finish::text(&written)),
            Target::Url => finish::url(&written, &self.context.urls),
            Target::Html => finish::html(&written),
        };
        let finished = finished.map_err(|problem| RenderError::Unsafe {
            place: place(),
            problem: problem.to_owned(),
        })?;
        if finished.len() > bytes_max { Err(too_long()) } else { Ok(finished) }
    }
}
