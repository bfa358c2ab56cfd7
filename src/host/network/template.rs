//! The subset of Go's template language used in containerd's CNI templates: a value, `range`, `if`, `else`, `end`,
//! comments and trim marks. Pure; anything else between braces is an error that names it.

use std::iter::Peekable;
use std::vec::IntoIter;

/// Values that a template may use.
#[derive(Debug, Clone)]
pub(super) struct Values {
    /// `.PodCIDR`
    pub(super) pod_cidr: String,
    /// `.PodCIDRRanges`
    pub(super) pod_cidr_ranges: Vec<String>,
    /// `.Routes`
    pub(super) routes: Vec<String>,
}

/// Blocks within blocks; real templates have three.
const MAX_DEPTH: usize = 16;

/// Fills a template.
pub(super) fn render(template: &str, values: &Values) -> Result<String, String> {
    let mut tokens = tokens(template)?.into_iter().peekable();
    let (nodes, end) = parse(&mut tokens, 0)?;
    if let Some(end) = end {
        return Err(format!("{{{{{end}}}}} has no beginning"));
    }
    let (mut out, mut scope) = (String::new(), Scope { values, variables: Vec::new(), dot: None });
    write(&nodes, &mut scope, &mut out)?;
    Ok(out)
}

#[derive(Debug)]
enum Token {
    Text(String),
    Action(String),
}

fn tokens(template: &str) -> Result<Vec<Token>, String> {
    let (mut tokens, mut rest, mut trim) = (Vec::new(), template, false);
    while let Some((before, after)) = rest.split_once("{{") {
        let (after, trim_before) = match after.strip_prefix("- ") {
            Some(after) => (after, true),
            None => (after, false),
        };
        let (action, next) = after.split_once("}}").ok_or("{{ without }}")?;
        let (action, trim_after) = match action.strip_suffix(" -") {
            Some(action) => (action, true),
            None => (action, false),
        };
        let before = if trim { before.trim_start() } else { before };
        let before = if trim_before { before.trim_end() } else { before };
        tokens.push(Token::Text(before.to_owned()));
        let action = action.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            tokens.push(Token::Action(action.to_owned()));
        }
        (rest, trim) = (next, trim_after);
    }
    tokens.push(Token::Text(if trim { rest.trim_start() } else { rest }.to_owned()));
    Ok(tokens)
}

#[derive(Debug)]
enum Node {
    Text(String),
    Value(String),
    Range { variables: Vec<String>, over: String, body: Vec<Node>, otherwise: Vec<Node> },
    If { condition: String, body: Vec<Node>, otherwise: Vec<Node> },
}

/// Nodes up to the `end` or `else` of an enclosing block, which is returned too.
fn parse(
    tokens: &mut Peekable<IntoIter<Token>>,
    depth: usize,
) -> Result<(Vec<Node>, Option<&'static str>), String> {
    if depth > MAX_DEPTH {
        return Err(format!("more than {MAX_DEPTH} blocks within each other"));
    }
    let mut nodes = Vec::new();
    while let Some(token) = tokens.next() {
        let action = match token {
            Token::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Token::Action(action) => action,
        };
        let (word, argument) = match action.split_once(char::is_whitespace) {
            Some((word, argument)) => (word, argument.trim()),
            None => (action.as_str(), ""),
        };
        match (word, argument) {
            ("end", "") => return Ok((nodes, Some("end"))),
            ("else", "") => return Ok((nodes, Some("else"))),
            ("range", argument) => {
                let (variables, over) = match argument.split_once(":=") {
                    Some((names, over)) => (names.split(',').map(|n| n.trim().to_owned()).collect(), over),
                    None => (Vec::new(), argument),
                };
                let named = |name: &String| name.len() > 1 && name.starts_with('$');
                if variables.len() > 2 || !variables.iter().all(named) {
                    return Err(format!("{{{{{action}}}}}: expected `range $index, $value := list`"));
                }
                let (body, otherwise) = block(tokens, depth, &action)?;
                nodes.push(Node::Range { variables, over: over.trim().to_owned(), body, otherwise });
            }
            ("if", condition) if !condition.is_empty() => {
                let (body, otherwise) = block(tokens, depth, &action)?;
                nodes.push(Node::If { condition: condition.to_owned(), body, otherwise });
            }
            (_, "") => nodes.push(Node::Value(action)),
            _ => return Err(format!("{{{{{action}}}}} is not understood")),
        }
    }
    Ok((nodes, None))
}

fn block(
    tokens: &mut Peekable<IntoIter<Token>>,
    depth: usize,
    action: &str,
) -> Result<(Vec<Node>, Vec<Node>), String> {
    let unended = || format!("{{{{{action}}}}} has no end");
    let (body, end) = parse(tokens, depth + 1)?;
    match end.ok_or_else(unended)? {
        "else" => match parse(tokens, depth + 1)? {
            (otherwise, Some("end")) => Ok((body, otherwise)),
            (_, Some(_)) => Err(format!("{{{{{action}}}}} has two times else")),
            (_, None) => Err(unended()),
        },
        _ => Ok((body, Vec::new())),
    }
}

#[derive(Debug, Clone)]
enum Value {
    Text(String),
    Number(usize),
    List(Vec<String>),
}

impl Value {
    fn is_true(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::Number(number) => *number != 0,
            Self::List(list) => !list.is_empty(),
        }
    }
}

struct Scope<'a> {
    values: &'a Values,
    variables: Vec<(String, Value)>,
    /// The value of `.` inside a range.
    dot: Option<Value>,
}

impl Scope<'_> {
    fn get(&self, name: &str) -> Result<Value, String> {
        let unknown = || {
            let known = ".PodCIDR, .PodCIDRRanges and .Routes";
            format!("{{{{{name}}}}} is not known; a template may use {known}, if, range, else and end")
        };
        match (name, &self.dot) {
            (".PodCIDR", None) | ("$.PodCIDR", _) => Ok(Value::Text(self.values.pod_cidr.clone())),
            (".PodCIDRRanges", None) | ("$.PodCIDRRanges", _) => {
                Ok(Value::List(self.values.pod_cidr_ranges.clone()))
            }
            (".Routes", None) | ("$.Routes", _) => Ok(Value::List(self.values.routes.clone())),
            (".", Some(dot)) => Ok(dot.clone()),
            _ => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                found.map(|(_, value)| value.clone()).ok_or_else(unknown)
            }
        }
    }
}

fn write(nodes: &[Node], scope: &mut Scope<'_>, out: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Value(name) => match scope.get(name)? {
                Value::Text(text) => out.push_str(&text),
                Value::Number(number) => out.push_str(&number.to_string()),
                Value::List(_) => return Err(format!("{{{{{name}}}}} is a list: use range")),
            },
            Node::If { condition, body, otherwise } => {
                let branch = if scope.get(condition)?.is_true() { body } else { otherwise };
                write(branch, scope, out)?;
            }
            Node::Range { variables, over, body, otherwise } => {
                let Value::List(list) = scope.get(over)? else {
                    return Err(format!("{{{{range}}}} over {over}, which is no list"));
                };
                if list.is_empty() {
                    write(otherwise, scope, out)?;
                }
                let (outer_dot, outer_variables) = (scope.dot.take(), scope.variables.len());
                for (index, item) in list.into_iter().enumerate() {
                    let item = Value::Text(item);
                    scope.dot = Some(item.clone());
                    match variables.as_slice() {
                        [value] => scope.variables.push((value.clone(), item)),
                        [number, value] => {
                            scope.variables.push((number.clone(), Value::Number(index)));
                            scope.variables.push((value.clone(), item));
                        }
                        _ => {}
                    }
                    write(body, scope, out)?;
                    scope.variables.truncate(outer_variables);
                }
                scope.dot = outer_dot;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values {
            pod_cidr: "10.1.0.0/24".into(),
            pod_cidr_ranges: vec!["10.1.0.0/24".into(), "fd00::/64".into()],
            routes: vec!["0.0.0.0/0".into(), "::/0".into()],
        }
    }

    fn filled(template: &str) -> Result<String, String> {
        render(template, &values())
    }

    #[test]
    fn what_containerds_documents_show_is_filled() {
        assert_eq!(filled(r#""subnet": "{{.PodCIDR}}""#).unwrap(), r#""subnet": "10.1.0.0/24""#);
        let ranges =
            r#"[{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}]"#;
        assert_eq!(filled(ranges).unwrap(), r#"[[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]"#);
        let routes = r#"[{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]"#;
        assert_eq!(filled(routes).unwrap(), r#"[{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]"#);
    }

    #[test]
    fn the_rest_of_the_language_that_is_there() {
        assert_eq!(filled("a\n {{- range .Routes -}}  <{{ . }}> {{- end }}").unwrap(), "a<0.0.0.0/0><::/0>");
        assert_eq!(filled("{{/* nothing */}}x{{if .Routes}}y{{else}}z{{end}}").unwrap(), "xy");
        let nested = "{{range $c := .PodCIDRRanges}}{{range $.Routes}}{{$c}}>{{.}} {{end}}{{end}}";
        assert_eq!(filled(nested).unwrap().split_whitespace().count(), 4);
        let none = Values { routes: Vec::new(), ..values() };
        assert_eq!(render("{{range .Routes}}{{.}}{{else}}none{{end}}", &none).unwrap(), "none");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (template, word) in [
            ("{{.PodCIDr}}", ".PodCIDr"),
            ("{{range .Routes}}{{.Routes}}{{end}}", ".Routes"),
            ("{{$x}}", "$x"),
            ("{{printf .PodCIDR}}", "printf"),
            ("{{.Routes}}", "list"),
            ("{{range .PodCIDR}}{{end}}", "no list"),
            ("{{range $a, $b, $c := .Routes}}{{end}}", "range"),
            ("{{if .Routes}}", "no end"),
            ("{{if .Routes}}{{else}}{{else}}{{end}}", "else"),
            ("{{end}}", "no beginning"),
            ("{{.PodCIDR", "without"),
        ] {
            let error = filled(template).unwrap_err();
            assert!(error.contains(word), "{template}: {error}");
        }
        assert!(filled(&"{{if .Routes}}".repeat(100)).unwrap_err().contains("blocks"));
    }
}
