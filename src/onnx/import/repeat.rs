//! Bodies that are read more than once: `Loop` and `Scan`, one copy a step, where the number of steps is known.
//!
//! JAX's `lax.scan` and PyTorch's `scan` over stacked layers are exported so.

use super::{Env, Importer, MAX_DEPTH, Scope};
use crate::error::Problem;
use crate::ir::infer::resolve_axis;
use crate::ir::{DType, Dim, Id};
use crate::onnx::build::Value;
use crate::onnx::call::{Call, Read};
use crate::onnx::known::Known;
use crate::onnx::ops;
use crate::onnx::proto::GraphProto;

const UNROLL: &str = "export with fixed sizes, or without the loop: a number of steps that depends on the tokens, such as a \
                      recurrence over them, has no graph of its own";

impl<'m> Importer<'m> {
    /// `Loop`: operands are the number of steps, whether there is a first one, and what is carried from step to step.
    pub(super) fn repeat(&mut self, call: &Call<'m>, env: &mut Env<'m>, scope: &Scope<'m>, place: &str) -> Read {
        let body = call.graph_attr("body").ok_or("attribute body is missing")?;
        let number = |k: usize| match call.get(k) {
            None => Ok(None),
            Some(_) => call.known(k).and_then(Known::uniform).map(Some).ok_or(()),
        };
        let open = || Problem::new("", "the number of steps depends on the model's inputs").help(UNROLL);
        let steps = number(0).map_err(|()| open())?.map_or(u64::MAX, |n| n.max(0.0) as u64);
        let mut goes_on = number(1).map_err(|()| open())?.is_none_or(|c| c != 0.0);
        let mut carried: Vec<Value> = call.inputs.iter().skip(2).cloned().collect();
        let mut rows: Vec<Vec<Value>> = vec![vec![]; body.output.len().saturating_sub(1 + carried.len())];
        let mut step = 0;
        while goes_on && step < steps {
            let now = [Value::Known(Known::scalar(Dim::Known(step as i64))), Value::Known(truth(true))];
            let Some(mut results) =
                self.step(body, [&now, &carried[..]].concat(), 1 + carried.len(), env, scope, place)?
            else {
                return Ok(vec![Value::Refused; carried.len() + rows.len()]);
            };
            for (all, row) in rows.iter_mut().zip(results.split_off(1 + carried.len())) {
                all.push(row);
            }
            carried = results.split_off(1);
            let Value::Known(condition) = &results[0] else { return Err(open()) };
            goes_on = condition.uniform().ok_or_else(open)? != 0.0;
            step += 1;
        }
        for all in rows {
            carried.push(self.stacked(&all, 0)?);
        }
        Ok(carried)
    }

    /// `Scan`: operands are what is carried, then tensors of which each step sees one element along an axis.
    pub(super) fn scan(&mut self, call: &Call<'m>, env: &mut Env<'m>, scope: &Scope<'m>, place: &str) -> Read {
        if scope.opset < 9 {
            return Err("goes through sequences of a batch before opset 9; that form is not read".into());
        }
        let body = call.graph_attr("body").ok_or("attribute body is missing")?;
        let n = call.int("num_scan_inputs").and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let states =
            n.and_then(|n| call.inputs.len().checked_sub(n)).ok_or("num_scan_inputs does not fit its operands")?;
        let (mut carried, seen) = (call.inputs[..states].to_vec(), &call.inputs[states..]);
        let attribute = |name: &str, k: usize| call.ints(name).and_then(|v| v.get(k)).copied().unwrap_or(0);
        let (mut axes, mut sizes) = (Vec::new(), Vec::new());
        for (k, value) in seen.iter().enumerate() {
            let dims = ops::shape_of(&self.b, value)?;
            let axis = resolve_axis(attribute("scan_input_axes", k), dims.len())?;
            sizes.push(dims[axis].clone());
            axes.push(axis);
        }
        let open = || Problem::new("", format!("the number of steps is {}", sizes[0])).help(UNROLL);
        let steps = sizes[0].known().and_then(|n| usize::try_from(n).ok()).ok_or_else(open)?;
        if sizes.iter().any(|d| *d != sizes[0]) {
            return Err("the tensors that it goes through differ in length".into());
        }
        let at = |name: &str, k: usize, step: usize| if attribute(name, k) == 1 { steps - 1 - step } else { step };
        let mut rows: Vec<Vec<Value>> = vec![vec![]; body.output.len().saturating_sub(states)];
        for step in 0..steps {
            let mut inputs = carried.clone();
            for (k, value) in seen.iter().enumerate() {
                inputs.push(self.element(value, axes[k], at("scan_input_directions", k, step))?);
            }
            let Some(mut results) = self.step(body, inputs, states, env, scope, place)? else {
                return Ok(vec![Value::Refused; states + rows.len()]);
            };
            for (all, row) in rows.iter_mut().zip(results.split_off(states)) {
                all.push(row);
            }
            carried = results;
        }
        for (k, mut all) in rows.into_iter().enumerate() {
            if attribute("scan_output_directions", k) == 1 {
                all.reverse();
            }
            carried.push(self.stacked(&all, attribute("scan_output_axes", k))?);
        }
        Ok(carried)
    }

    /// The results of a body for these inputs, so many at least; none where something in it was refused.
    fn step(
        &mut self,
        body: &'m GraphProto,
        inputs: Vec<Value>,
        least: usize,
        env: &mut Env<'m>,
        scope: &Scope<'m>,
        place: &str,
    ) -> Result<Option<Vec<Value>>, Problem> {
        if scope.depth >= MAX_DEPTH {
            return Err(format!("bodies are nested deeper than {MAX_DEPTH} levels").into());
        }
        if inputs.len() != body.input.len() || body.output.len() < least {
            let (given, takes, gives) = (inputs.len(), body.input.len(), body.output.len());
            return Err(format!("its body takes {takes} of {given} values and gives {gives} of {least}").into());
        }
        if !self.within_bounds(place) {
            return Ok(None);
        }
        let names = || body.input.iter().map(|i| i.name.as_str());
        let hidden: Vec<Option<Value>> = names().zip(inputs).map(|(name, value)| env.insert(name, value)).collect();
        let results = self.body(body, env, scope, place);
        for (name, before) in names().zip(hidden) {
            match before {
                Some(value) => env.insert(name, value),
                None => env.remove(name),
            };
        }
        let results = results?;
        Ok((!results.iter().any(|v| matches!(v, Value::Refused))).then_some(results))
    }

    /// Element `k` along an axis, which it loses.
    fn element(&mut self, value: &Value, axis: usize, k: usize) -> Result<Value, String> {
        let mut shape = ops::shape_of(&self.b, value)?;
        shape.remove(axis);
        let (start, end) = (Dim::Known(k as i64), Dim::Known(k as i64 + 1));
        let row = ops::forward(&mut self.b, value, axis, start, end, 1)?;
        ops::reshaped(&mut self.b, &row, &shape)
    }

    /// Values behind one another along a new axis.
    fn stacked(&mut self, rows: &[Value], axis: i64) -> Result<Value, String> {
        let ids: Vec<Id> = rows.iter().map(|row| self.b.tensor(row)).collect::<Result<_, _>>()?;
        let mut shape = self.b.shape(*ids.first().ok_or("it has no steps, and so no results of each")?);
        let axis = resolve_axis(axis, shape.len() + 1)?;
        shape.insert(axis, Dim::Known(1));
        let rows: Vec<Id> = ids.iter().map(|id| self.b.reshape(*id, &shape)).collect::<Result<_, _>>()?;
        self.b.concat(&rows, axis).map(Value::Node)
    }
}

fn truth(holds: bool) -> Known {
    Known { dtype: DType::Bool, ..Known::scalar(Dim::Known(holds.into())) }
}
