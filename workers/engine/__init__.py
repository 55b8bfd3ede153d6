"""The step loop around one llama.cpp context: sequences, scheduler, sampling. `llama_cpp` is imported only here."""
