//! Judges the source of one text before it is ever rendered.
//!
//! First its size, in pieces, so that nothing after it recurses deeply; then its syntax; then, along every branch,
//! what it uses and where its expressions stand. Both sides of a condition have to end at the same position of the
//! HTML or URL, and the body of a loop where it began.

use std::collections::BTreeMap;
use std::mem::discriminant;

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, ForLoop, IfCond, Stmt, UnaryOpKind};
use minijinja::machinery::{Span, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::document::{Declaration, VariableType};
use super::engine::{self, FILTERS, FUNCTIONS, TESTS};
use super::field::Target;
use super::finish::{CLOSE, OPEN, clean_line, clean_text};
use super::html::HtmlState;
use super::link::{LinkKind, LinkState, Origin};

/// Names, signs and values between two braces, at most.
const TOKENS_PER_TAG_MAX: usize = 200;
/// Braces of a text, at most.
const TAGS_MAX: usize = 1_000;
/// `elif` of a text, at most.
const ELIFS_MAX: usize = 50;

/// Operators that take numbers alone and give one.
const ARITHMETIC: [BinOpKind; 5] =
    [BinOpKind::Sub, BinOpKind::Div, BinOpKind::FloorDiv, BinOpKind::Rem, BinOpKind::Pow];
/// Filters that give a number or fail, when their arguments are numbers.
const NUMBER_FILTERS: [&str; 6] = ["abs", "count", "float", "int", "length", "round"];
/// Members of `loop` that are numbers.
const LOOP_NUMBERS: [&str; 5] = ["index", "index0", "length", "revindex", "revindex0"];

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// From 1.
    pub line: usize,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl Finding {
    fn new(line: usize, problem: impl Into<String>) -> Self {
        Self { line, problem: problem.into() }
    }

    fn at(span: Span, problem: impl Into<String>) -> Self {
        Self::new(usize::from(span.start_line), problem)
    }
}

impl From<minijinja::Error> for Finding {
    fn from(error: minijinja::Error) -> Self {
        Self::new(error.line().unwrap_or(1), engine::problem(&error))
    }
}

/// What is followed along the branches of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    Plain,
    Html(HtmlState),
    Link(LinkState),
}

impl Shape {
    fn raw(&mut self, text: &str) -> Result<(), &'static str> {
        match self {
            Self::Plain => Ok(()),
            Self::Html(state) => state.raw(&clean_text(text)),
            Self::Link(state) => state.raw(&clean_line(text)),
        }
    }

    fn plan(&mut self, origin: Origin) -> Result<(), &'static str> {
        match self {
            Self::Plain => Ok(()),
            Self::Html(state) => state.plan(origin),
            Self::Link(state) => state.plan(origin),
        }
    }

    /// The position after two branches, when it is one.
    fn join(self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Html(one), Self::Html(other)) => one.join(other).map(Self::Html),
            (Self::Link(one), Self::Link(other)) => one.join(other).map(Self::Link),
            (one, other) => (one == *other).then_some(one),
        }
    }

    fn end(&self) -> Result<(), &'static str> {
        match self {
            Self::Plain => Ok(()),
            Self::Html(state) => state.end(),
            Self::Link(state) => state.end(),
        }
    }
}

/// What is known of a good text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    /// The variable that a URL begins with.
    pub begins_with: Option<String>,
}

/// Judges `source`.
pub(crate) fn check(
    source: &str,
    target: Target,
    variables: &BTreeMap<String, Declaration>,
) -> Result<Checked, Finding> {
    if source.contains([OPEN, CLOSE]) {
        return Err(Finding::new(1, "contains U+FDD0 or U+FDD1, which no text has; remove it"));
    }
    check_size(source)?;
    let Stmt::Template(root) = parse(source, "text", SyntaxConfig::default())? else {
        return Err(Finding::new(1, "is no template"));
    };
    let shape = match target {
        Target::Line | Target::Text => Shape::Plain,
        Target::Html => Shape::Html(HtmlState::default()),
        Target::Url => Shape::Link(LinkState::new(LinkKind::Action)),
    };
    let mut checker = Checker { variables, line: 1 };
    let shape = checker.body(&root.children, shape)?;
    let last = source.lines().count().max(1);
    shape.end().map_err(|problem| Finding::new(last, problem))?;
    let begins_with = match root.children.first() {
        Some(Stmt::EmitExpr(emit)) if target == Target::Url => match &emit.expr {
            Expr::Var(var) => Some(var.id.to_owned()),
            _ => None,
        },
        _ => None,
    };
    Ok(Checked { begins_with })
}

fn check_size(source: &str) -> Result<(), Finding> {
    let (mut tags, mut elifs, mut tokens) = (0, 0, 0);
    for token in tokenize(source, false, SyntaxConfig::default()) {
        let (token, span) = token?;
        tokens += 1;
        match token {
            Token::TemplateData(_) | Token::VariableEnd | Token::BlockEnd => tokens = 0,
            Token::VariableStart | Token::BlockStart => tags += 1,
            Token::Ident("elif") => elifs += 1,
            _ => {}
        }
        let problem = match (tokens > TOKENS_PER_TAG_MAX, tags > TAGS_MAX, elifs > ELIFS_MAX) {
            (true, ..) => "this expression is too long; shorten it",
            (_, true, _) => "the text has more than 1000 {{ }} and {% %}; use fewer",
            (.., true) => "the text has more than 50 elif; use fewer",
            _ => continue,
        };
        return Err(Finding::at(span, problem));
    }
    Ok(())
}

struct Checker<'a> {
    variables: &'a BTreeMap<String, Declaration>,
    line: usize,
}

impl Checker<'_> {
    fn body(&mut self, body: &[Stmt<'_>], mut shape: Shape) -> Result<Shape, Finding> {
        for statement in body {
            shape = self.statement(statement, shape)?;
        }
        Ok(shape)
    }

    fn statement(&mut self, statement: &Stmt<'_>, mut shape: Shape) -> Result<Shape, Finding> {
        match statement {
            Stmt::EmitRaw(raw) => {
                self.line = usize::from(raw.span().start_line);
                shape.raw(raw.raw).map_err(|problem| Finding::at(raw.span(), problem))?;
            }
            Stmt::EmitExpr(emit) => {
                self.expr(&emit.expr)?;
                shape
                    .plan(self.origin(&emit.expr))
                    .map_err(|problem| Finding::at(emit.expr.span(), problem))?;
            }
            Stmt::IfCond(condition) => shape = self.condition(condition, shape)?,
            Stmt::ForLoop(each) => shape = self.each(each, shape)?,
            Stmt::Set(set) => {
                self.target(&set.target)?;
                self.expr(&set.expr)?;
            }
            Stmt::WithBlock(with) => {
                for (target, value) in &with.assignments {
                    self.target(target)?;
                    self.expr(value)?;
                }
                shape = self.body(&with.body, shape)?;
            }
            _ => {
                return Err(Finding::new(
                    self.line,
                    "only if, for, with and set (with =) may be used in {% %}",
                ));
            }
        }
        Ok(shape)
    }

    fn condition(&mut self, condition: &IfCond<'_>, shape: Shape) -> Result<Shape, Finding> {
        self.expr(&condition.expr)?;
        let yes = self.body(&condition.true_body, shape.clone())?;
        let no = self.body(&condition.false_body, shape)?;
        yes.join(&no).ok_or_else(|| {
            Finding::at(
                condition.expr.span(),
                "both sides of this condition have to end at the same position of the HTML or URL; \
                 give it an else, and close what it opens",
            )
        })
    }

    fn each(&mut self, each: &ForLoop<'_>, shape: Shape) -> Result<Shape, Finding> {
        let span = each.iter.span();
        if each.recursive {
            return Err(Finding::at(span, "a loop may not be recursive; remove the word"));
        }
        self.target(&each.target)?;
        self.expr(&each.iter)?;
        if let Some(filter) = &each.filter_expr {
            self.expr(filter)?;
        }
        let body = self.body(&each.body, shape.clone())?;
        let none = self.body(&each.else_body, shape.clone())?;
        if body != shape || none != shape {
            return Err(Finding::at(
                span,
                "this loop has to end at the position of the HTML or URL where it began; close what it opens",
            ));
        }
        Ok(shape)
    }

    fn origin(&self, expr: &Expr<'_>) -> Origin {
        let Expr::Var(var) = expr else { return Origin::Expression };
        match self.variables.get(var.id).map(|declaration| declaration.kind) {
            Some(VariableType::Url) => Origin::Url,
            Some(_) => Origin::Variable,
            None => Origin::Expression,
        }
    }

    fn expr(&mut self, expr: &Expr<'_>) -> Result<(), Finding> {
        self.line = usize::from(expr.span().start_line);
        let wrong = |problem: String| Err(Finding::at(expr.span(), problem));
        match expr {
            Expr::Var(_) | Expr::Const(_) => Ok(()),
            Expr::UnaryOp(unary) => self.expr(&unary.expr),
            // Lists can be added and repeated too, and the engine does not charge for what that makes.
            Expr::BinOp(binary)
                if matches!(binary.op, BinOpKind::Add | BinOpKind::Mul)
                    && !(self.is_number(&binary.left) && self.is_number(&binary.right)) =>
            {
                wrong(
                    "only numbers may be added or multiplied; write |int or |float after a value that is not \
                     declared as a number, and ~ between texts"
                        .to_owned(),
                )
            }
            Expr::BinOp(binary) => self.exprs([&binary.left, &binary.right]),
            Expr::GetAttr(get) => self.expr(&get.expr),
            Expr::GetItem(get) => self.exprs([&get.expr, &get.subscript_expr]),
            Expr::Compare(compare) => {
                self.expr(&compare.expr)?;
                self.exprs(compare.ops.iter().map(|op| &op.expr))
            }
            Expr::IfExpr(choice) => {
                self.exprs([&choice.test_expr, &choice.true_expr])?;
                self.exprs(&choice.false_expr)
            }
            Expr::Slice(slice) => {
                self.expr(&slice.expr)?;
                self.exprs([&slice.start, &slice.stop, &slice.step].into_iter().flatten())
            }
            Expr::Filter(filter) if !FILTERS.contains(&filter.name) => {
                wrong(unknown("filter", filter.name, &FILTERS))
            }
            Expr::Filter(filter) => {
                self.exprs(&filter.expr)?;
                self.arguments(&filter.args, expr.span())
            }
            Expr::Test(test) if !TESTS.contains(&test.name) => {
                wrong(unknown("test", test.name, &TESTS))
            }
            Expr::Test(test) => {
                self.expr(&test.expr)?;
                self.arguments(&test.args, expr.span())
            }
            Expr::Call(call) => match &call.expr {
                Expr::Var(var) if FUNCTIONS.contains(&var.id) => {
                    self.arguments(&call.args, expr.span())
                }
                _ => wrong("only range(…) may be called".to_owned()),
            },
            // Lists of lists double with every assignment.
            Expr::List(list) if list.items.iter().all(|item| matches!(item, Expr::Const(_))) => {
                Ok(())
            }
            Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) => {
                wrong("a list may have only fixed values in it, and there are no maps".to_owned())
            }
        }
    }

    /// Whether the value is a number whatever the variables are.
    fn is_number(&self, expr: &Expr<'_>) -> bool {
        match expr {
            Expr::Const(constant) => constant.value.is_number(),
            Expr::Var(var) => {
                let declaration = self.variables.get(var.id);
                declaration.is_some_and(|declaration| declaration.kind == VariableType::Number)
            }
            Expr::GetAttr(get) => {
                let of_loop = matches!(&get.expr, Expr::Var(var) if var.id == "loop");
                of_loop && LOOP_NUMBERS.contains(&get.name)
            }
            Expr::UnaryOp(unary) => matches!(unary.op, UnaryOpKind::Neg),
            Expr::BinOp(binary) => match binary.op {
                BinOpKind::Add | BinOpKind::Mul => {
                    self.is_number(&binary.left) && self.is_number(&binary.right)
                }
                op => ARITHMETIC.iter().any(|other| discriminant(other) == discriminant(&op)),
            },
            // A default may be anything, so that the arguments count too.
            Expr::Filter(filter) => {
                let number = |argument: &CallArg<'_>| match argument {
                    CallArg::Pos(expr) | CallArg::Kwarg(_, expr) => self.is_number(expr),
                    CallArg::PosSplat(_) | CallArg::KwargSplat(_) => false,
                };
                NUMBER_FILTERS.contains(&filter.name) && filter.args.iter().all(number)
            }
            _ => false,
        }
    }

    /// A name that a text gives to something may not be that of a variable, whose type is then another.
    fn target(&self, target: &Expr<'_>) -> Result<(), Finding> {
        match target {
            Expr::Var(var) if !self.variables.contains_key(var.id) => Ok(()),
            Expr::Var(var) => Err(Finding::at(
                target.span(),
                format!("{} is a variable of the template; take another name", var.id),
            )),
            Expr::List(list) => list.items.iter().try_for_each(|item| self.target(item)),
            Expr::Tuple(tuple) => tuple.items.iter().try_for_each(|item| self.target(item)),
            _ => Err(Finding::at(target.span(), "only names may be set")),
        }
    }

    fn exprs<'e, 's: 'e>(
        &mut self,
        exprs: impl IntoIterator<Item = &'e Expr<'s>>,
    ) -> Result<(), Finding> {
        exprs.into_iter().try_for_each(|expr| self.expr(expr))
    }

    fn arguments(&mut self, arguments: &[CallArg<'_>], span: Span) -> Result<(), Finding> {
        arguments.iter().try_for_each(|argument| match argument {
            CallArg::Pos(expr) | CallArg::Kwarg(_, expr) => self.expr(expr),
            CallArg::PosSplat(_) | CallArg::KwargSplat(_) => {
                Err(Finding::at(span, "arguments may not be spread with *; write them out"))
            }
        })
    }
}

fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let hint = match name {
        "e" | "escape" | "safe" => " (values are always escaped)",
        _ => "",
    };
    format!("there is no {what} {name}{hint}; there are {}", known.join(", "))
}

#[cfg(test)]
mod tests;
