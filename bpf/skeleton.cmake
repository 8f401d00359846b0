# bpf/*.bpf.c -> <build>/bpf/*.bpf.o -> <build>/bpf/*.skel.h (the object as a C array, with its maps by name).
# Target culvert_bpf_build makes them; <build>/bpf is to be included by daemon/device/af_xdp/program.cc alone.
find_program(CLANG NAMES clang clang-14 clang-16 REQUIRED)
find_program(BPFTOOL bpftool PATHS /usr/sbin /sbin REQUIRED)
set(bpf_source_dir ${CMAKE_CURRENT_LIST_DIR})
set(bpf_output_dir ${PROJECT_BINARY_DIR}/bpf)
file(MAKE_DIRECTORY ${bpf_output_dir})

# <asm/types.h> lives in the multiarch directory of the host; BPF has none of its own.
add_custom_command(
  OUTPUT ${bpf_output_dir}/steer.bpf.o
  COMMAND ${CLANG} -target bpf -mcpu=v3 -O2 -g -Wall -Werror -I${bpf_source_dir} -I/usr/include/${CMAKE_LIBRARY_ARCHITECTURE}
          -c ${bpf_source_dir}/steer.bpf.c -o ${bpf_output_dir}/steer.bpf.o
  DEPENDS ${bpf_source_dir}/steer.bpf.c ${bpf_source_dir}/steer_parse.h ${bpf_source_dir}/steer_shared.h
          ${bpf_source_dir}/steer_tables.h ${bpf_source_dir}/steer_read_xdp.h ${bpf_source_dir}/steer_read_skb.h
  COMMENT "Compiling bpf/steer.bpf.c" VERBATIM)
add_custom_command(
  OUTPUT ${bpf_output_dir}/steer.skel.h
  COMMAND sh -c "\"$1\" gen skeleton \"$2\" name steer_bpf > \"$3\"" gen
          ${BPFTOOL} ${bpf_output_dir}/steer.bpf.o ${bpf_output_dir}/steer.skel.h
  DEPENDS ${bpf_output_dir}/steer.bpf.o
  COMMENT "Generating steer.skel.h" VERBATIM)
add_custom_target(culvert_bpf_build DEPENDS ${bpf_output_dir}/steer.skel.h)
