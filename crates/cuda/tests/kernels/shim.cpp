// The entry points of the library, behind the kernels and the table `shim_kernels`.

extern "C" u32 shim_count() { return sizeof(shim_kernels) / sizeof(shim_kernels[0]); }
extern "C" const char* shim_name(u32 i) { return shim_kernels[i].name; }
extern "C" const char* shim_kinds(u32 i) { return shim_kernels[i].kinds; }

// Sizes of the structures that the host writes or reads.
extern "C" u32 shim_size(u32 i) {
  const u32 sizes[] = {sizeof(Tensor), sizeof(Chunk), sizeof(StepScalars), sizeof(StepReport)};
  return sizes[i];
}

// Runs kernel `i`. order: bit 0 turns the order of threads round, bit 1 that of blocks.
extern "C" void shim_launch(u32 i, const u32* grid, const u32* block, void* const* args, u32 order) {
  using namespace shim;
  if (!stacks) {
    void* p = mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) fail("no memory for stacks");
    stacks = (char*)p;
  }
  shim::grid = {grid[0], grid[1], grid[2]};
  block_size = {block[0], block[1], block[2]};
  body = shim_kernels[i].run;
  arguments = args;
  const u32 threads = block[0] * block[1] * block[2], blocks = grid[0] * grid[1] * grid[2];
  if (threads > MOST_THREADS) fail("a block of more than 1024 threads");
  for (u32 k = 0; k < blocks; k++) {
    const u32 b = order & 2 ? blocks - 1 - k : k;
    shim::block = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
    run_block(threads, order & 1);
  }
}
