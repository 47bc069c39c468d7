//! `ai.weft.AdamW` on the CPU, for f32: one pass over memory instead of one for each of a dozen operators.

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::{DynValue, TensorElementType as Type};

/// The operator: p, g, m, v and seven f64 scalars to p, m, v.
pub struct AdamW;

/// What a thread takes at a time: large enough to be worth waking for, small enough to share evenly.
const CHUNK: usize = 1 << 16;

/// Elements beside each other of which none ever had a gradient are not written, so that pages of such take no memory:
/// rows of an embedding whose words do not occur.
pub const BLOCK: usize = 256;

/// Whether all are zeros, of either sign.
#[inline(always)]
pub fn is_zero(values: &[f32]) -> bool {
    values.iter().fold(0, |any, x| any | x.to_bits()) << 1 == 0
}

/// The scalars as the function's body rounds them.
#[derive(Clone, Copy)]
pub struct Numbers {
    scale: f32,
    beta1: f32,
    beta2: f32,
    /// 1 - beta
    rest1: f32,
    rest2: f32,
    /// 1 - beta^step
    unbias1: f32,
    unbias2: f32,
    /// 1 - lr weight_decay
    keep: f32,
    lr: f32,
    eps: f32,
}

impl Numbers {
    /// From lr, weight_decay, beta1, beta2, eps, step, grad_scale.
    pub fn new([lr, weight_decay, beta1, beta2, eps, step, scale]: [f64; 7]) -> Self {
        Numbers {
            scale: scale as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            rest1: (1.0 - beta1) as f32,
            rest2: (1.0 - beta2) as f32,
            unbias1: (1.0 - beta1.powf(step)) as f32,
            unbias2: (1.0 - beta2.powf(step)) as f32,
            keep: (1.0 - lr * weight_decay) as f32,
            lr: lr as f32,
            eps: eps as f32,
        }
    }

    /// As the kernel for a GPU takes them.
    pub fn in_order(self) -> [f32; 10] {
        let Numbers { scale, beta1, beta2, rest1, rest2, unbias1, unbias2, keep, lr, eps } = self;
        [scale, beta1, beta2, rest1, rest2, unbias1, unbias2, keep, lr, eps]
    }

    /// Updates p, m and v, all of one length.
    fn update(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let blocks = p.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).zip(m.chunks_mut(BLOCK).zip(v.chunks_mut(BLOCK)));
        for ((p, g), (m, v)) in blocks {
            // A second moment of zero is rare where there was a gradient.
            let rests = v.first() == Some(&0.0) && [g, m, v].iter().all(|x| is_zero(x)) && self.eps > 0.0;
            if !rests {
                self.update_block(p, g, m, v);
            } else if self.keep != 1.0 {
                p.iter_mut().for_each(|p| *p *= self.keep);
            }
        }
    }

    /// In the order of operations of the function's body.
    #[inline(always)]
    fn update_block(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * self.scale;
            *m = *m * self.beta1 + g * self.rest1;
            *v = *v * self.beta2 + g * g * self.rest2;
            let step = (*m / self.unbias1) / ((*v / self.unbias2).sqrt() + self.eps);
            *p = *p * self.keep - self.lr * step;
        }
    }
}

impl Operator for AdamW {
    type Kernel<'a> = AdamW;

    fn name(&self) -> &str {
        "AdamW"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        (0..11).map(|k| OperatorInput::required(if k < 4 { Type::Float32 } else { Type::Float64 }))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        (0..3).map(|_| OperatorOutput::required(Type::Float32))
    }

    fn create_kernel<'a>(&self, _: &KernelContext<'a>) -> ort::Result<AdamW> {
        Ok(AdamW)
    }
}

impl Kernel for AdamW {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let input = |k: usize| context.input(k)?.ok_or_else(|| ort::Error::new(format!("AdamW: input {k} is missing")));
        let [p, g, m, v] = [input(0)?, input(1)?, input(2)?, input(3)?];
        let (shape, gradient) = g.try_extract_tensor::<f32>()?;
        let mut scalars = [0.0; 7];
        for (k, scalar) in scalars.iter_mut().enumerate() {
            *scalar = input(4 + k)?.try_extract_scalar::<f64>()?;
        }
        let numbers = Numbers::new(scalars);
        let output = |k: usize, from: &DynValue| {
            let (from_shape, values) = from.try_extract_tensor::<f32>()?;
            if from_shape != shape {
                return Err(ort::Error::new(format!("AdamW: shapes {from_shape} and {shape} differ")));
            }
            // Only the addresses are compared and used from here on: both may be one buffer.
            let from = values.as_ptr();
            let out = context.output(k, shape.clone())?;
            let mut out = out.ok_or_else(|| ort::Error::new(format!("AdamW: output {k} is missing")))?;
            let to = out.try_extract_tensor_mut::<f32>()?.1.as_mut_ptr();
            Ok(Pair { from, to })
        };
        let [p, m, v] = [output(0, &p)?, output(1, &m)?, output(2, &v)?];
        let n = gradient.len();
        let chunks = n.div_ceil(CHUNK);
        context.par_for(chunks, chunks, |chunk| {
            let range = chunk * CHUNK..n.min((chunk + 1) * CHUNK);
            // SAFETY: the range lies within the tensors, whose shapes are equal; chunks do not overlap;
            // no reference to the inputs p, m and v is alive, so an output may be its input's buffer.
            let [p, m, v] = unsafe { [p.slice(&range), m.slice(&range), v.slice(&range)] };
            numbers.update(p, &gradient[range], m, v);
        })
    }
}

/// An input's and its output's values; often one buffer.
#[derive(Clone, Copy)]
struct Pair {
    from: *const f32,
    to: *mut f32,
}

// SAFETY: threads are given disjoint ranges.
unsafe impl Send for Pair {}
unsafe impl Sync for Pair {}

impl Pair {
    /// The output's values in `range`, which are the input's where the two are apart.
    ///
    /// # Safety
    /// Both tensors reach beyond `range`; nothing else reads or writes the output in it meanwhile.
    unsafe fn slice<'a>(self, range: &std::ops::Range<usize>) -> &'a mut [f32] {
        // SAFETY: by the caller's promise.
        unsafe {
            let to = self.to.add(range.start);
            if self.from != self.to.cast_const() {
                to.copy_from(self.from.add(range.start), range.len());
            }
            std::slice::from_raw_parts_mut(to, range.len())
        }
    }
}
