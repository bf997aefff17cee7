// What the host writes before each step, and what it reads after it. The same structures are in `kernels/step.rs`.

// An optimiser's numbers of this step for one class of tensors.
struct RuleScalars {
  float lr;            // learning rate
  float momentum;      // momentum, or AdamW's first decay
  float second_decay;  // AdamW's second decay
  float epsilon;       // AdamW's
  float weight_decay;
  float trust;              // LARC's coefficient; negative: this class follows SGD
  float first_correction;   // 1 / (1 - first decay^t)
  float second_correction;  // 1 / (1 - second decay^t)
  int enabled;              // 0: nothing of this class changes or is counted in the norms
  float gradient_scale;     // gradients are multiplied by it first
  int padding[2];
};

struct StepScalars {
  RuleScalars classes[4];
  int queue_push;   // whether the batch enters the queue
  int queue_ready;  // whether the queue takes part in the codes
  int queue_slot;   // the row where this batch is put
  u32 serial;       // the step's number, copied to the report
  float bn_momentum;  // share of a batch in the running statistics
  float max_gradient_norm;  // gradients of all tensors together are clipped to it; 0: they are not
  int padding[2];
};

struct StepReport {
  double loss;                   // nats, averaged over samples and pairs of crops
  double code_entropy;           // mean over codes, nats
  double code_perplexity;        // exp of the entropy of the mean code
  double prediction_perplexity;  // exp of the entropy of the mean prediction
  double spread;                 // 1 - |mean embedding|²
  double parameter_norm;
  double gradient_norm;          // before clipping
  u32 serial;
  float clip_scale;              // what gradients are multiplied by so that they are no longer than allowed
};

// Rows of scores of assignment crop `i`: `queued` rows of the queue, then the batch.
template <class T> struct CodeRows {
  const T *scores, *queue_scores;
  const int* assign;
  int batch, queued, stride;
  DEVICE const T* row(int i, int r) const {
    return r < queued ? queue_scores + ((size_t)i * queued + r) * stride
                      : scores + ((size_t)assign[i] * batch + (r - queued)) * stride;
  }
  // The first row that takes part.
  DEVICE int first(const StepScalars* scalars) const { return queued && !scalars->queue_ready ? queued : 0; }
};
