//! What programs see that know Vulkan alone, through the loader: stock ones, and allocators that others wrote. The validation layer listens.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use hostblob_guest::ENV_SOCKET;

/// Where things are.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The program `allocators`.
    pub allocators: PathBuf,
    /// The program `vulkan_memory`.
    pub memory: PathBuf,
    /// For the programs' environment, besides what is in ours.
    pub environment: Vec<(&'static str, PathBuf)>,
    /// A folder to write to.
    pub folder: PathBuf,
}

/// What must hold.
pub type Check = fn(&Setup) -> Result<()>;

/// The one list of the checks, by who makes them: hands it to another macro.
#[macro_export]
macro_rules! for_each_vulkan_check {
    ($macro:ident) => {
        $macro! {
            stock {
                vulkaninfo_tells_of_the_device,
                vulkaninfo_sums_up_the_device,
                the_layer_tells_of_a_mistake,
                a_c_program_finds_every_memory_type_right,
                a_c_program_meets_the_quota,
                allocators_find_all_in_order,
            }
            gpu_allocator {
                gpu_allocator_serves_each_location,
                gpu_allocator_keeps_buffers_apart,
            }
            vma {
                vma_serves_each_usage,
                vma_serves_each_memory_type,
                vma_counts_blocks_and_bytes,
                vma_pools_have_an_end,
                vma_defragments,
                vma_keeps_to_the_budget,
            }
        }
    };
}

macro_rules! registry {
    (stock { $($check:ident,)* } $($module:ident { $($other:ident,)* })*) => {
        /// Checks of programs as a whole. Those of `allocators` are in the program.
        pub const STOCK: &[(&str, Check)] = &[$((stringify!($check), $check),)*];
    };
}
for_each_vulkan_check!(registry);

/// What a program left behind.
struct Said {
    stdout: String,
    /// Of the layer, about the program and the driver.
    messages: String,
}

impl Setup {
    fn is_over_socket(&self) -> bool {
        self.environment.iter().any(|(name, _)| *name == ENV_SOCKET)
    }

    /// Runs a program on the driver that the environment names, under the layer. It must end well.
    fn run(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Result<Said> {
        let log = self.folder.join("messages");
        let settings = self.folder.join("vk_layer_settings.txt");
        let text = format!(
            "khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG\n\
             khronos_validation.log_filename = {}\n\
             khronos_validation.report_flags = error,warn,perf\n\
             khronos_validation.validate_sync = true\n",
            log.display()
        );
        std::fs::write(&settings, text)?;
        let _ = std::fs::remove_file(&log);
        let program = program.as_ref();
        let output = Command::new(program)
            .args(arguments)
            .envs(self.environment.iter().cloned())
            .env("VK_INSTANCE_LAYERS", "VK_LAYER_KHRONOS_validation")
            .env("VK_LAYER_SETTINGS_PATH", &settings)
            .env("XDG_RUNTIME_DIR", &self.folder)
            .env_remove("DISPLAY")
            .output()
            .with_context(|| format!("{} cannot be run", program.display()))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        // The layer makes the file: it is not without one.
        let messages = std::fs::read_to_string(&log);
        if !output.status.success() {
            let name = program.display();
            let messages = messages.unwrap_or_default();
            bail!(
                "{name} ended with {}: {stdout}{stderr}{messages}",
                output.status
            );
        }
        let messages = messages.with_context(|| format!("there was no layer: {stderr}"))?;
        Ok(Said { stdout, messages })
    }

    /// Likewise, and the layer has no complaint.
    pub fn run_well(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Result<String> {
        let said = self.run(program, arguments)?;
        ensure!(
            said.messages.is_empty(),
            "the layer says: {}",
            said.messages
        );
        Ok(said.stdout)
    }
}

/// Each of these is in it. Versions of vulkaninfo align differently: any number of spaces counts as one.
fn has(text: &str, all: &[&str]) -> Result<()> {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in all {
        ensure!(words.contains(part), "no {part:?} in:\n{text}");
    }
    Ok(())
}

fn vulkaninfo_tells_of_the_device(setup: &Setup) -> Result<()> {
    let text = setup.run_well("vulkaninfo", &[])?;
    has(
        &text,
        &[
            "deviceName = hostblob (",
            "apiVersion = 1.1.",
            "VK_EXT_memory_budget",
            "VK_KHR_timeline_semaphore",
            "queueFlags = QUEUE_TRANSFER",
            "MEMORY_PROPERTY_HOST_VISIBLE_BIT",
        ],
    )?;
    ensure!(
        text.contains("VK_EXT_external_memory_dma_buf") != setup.is_over_socket(),
        "a socket makes no dma-bufs, the kernel does:\n{text}"
    );
    Ok(())
}

fn vulkaninfo_sums_up_the_device(setup: &Setup) -> Result<()> {
    let text = setup.run_well("vulkaninfo", &["--summary"])?;
    has(&text, &["GPU0:", "deviceName = hostblob ("])?;
    ensure!(!text.contains("GPU1:"), "another device:\n{text}");
    Ok(())
}

/// So the silence of the others means something.
fn the_layer_tells_of_a_mistake(setup: &Setup) -> Result<()> {
    let said = setup.run(&setup.allocators, &["--mistake"])?;
    has(&said.messages, &["VUID-VkBufferCreateInfo-size-00912"])
}

fn a_c_program_finds_every_memory_type_right(setup: &Setup) -> Result<()> {
    let text = setup.run_well(&setup.memory, &[])?;
    has(
        &text,
        &["memory type 0", "all bytes are right", "as they should be"],
    )?;
    match setup.is_over_socket() {
        true => Ok(()),
        false => has(&text, &["a dma-buf: two instances share bytes"]),
    }
}

fn a_c_program_meets_the_quota(setup: &Setup) -> Result<()> {
    let text = setup.run_well(&setup.memory, &["quota"])?;
    has(&text, &["then VK_ERROR_OUT_OF_DEVICE_MEMORY"])
}

/// Its own checks are told line by line.
fn allocators_find_all_in_order(setup: &Setup) -> Result<()> {
    print!("{}", setup.run_well(&setup.allocators, &[])?);
    Ok(())
}
