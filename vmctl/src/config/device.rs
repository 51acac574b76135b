//! Devices of either kind, and changes of a VM's devices.

use guest_proto::control::DeviceTable;

use super::{ConfigError, DiskConfig, LinkState, NicConfig, Source, VmConfig};

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceConfig {
    /// A disk.
    Disk(DiskConfig),
    /// A network card.
    Nic(NicConfig),
}

impl DeviceConfig {
    /// Parses what [`Self::to_table`] made.
    ///
    /// # Errors
    ///
    /// The text is not the table of such a device.
    pub fn parse(table: &DeviceTable) -> Result<Self, ConfigError> {
        match table {
            DeviceTable::Disk(text) => Source::new("disk", text.clone(), &[])?
                .deserialize()
                .map(Self::Disk),
            DeviceTable::Nic(text) => Source::new("nic", text.clone(), &[])?
                .deserialize()
                .map(Self::Nic),
        }
    }

    /// Returns its TOML text.
    ///
    /// # Errors
    ///
    /// A path is not UTF-8.
    pub fn to_table(&self) -> Result<DeviceTable, ConfigError> {
        let name = self.name();
        let failed = |e| ConfigError(format!("{name}: {e}"));
        match self {
            Self::Disk(disk) => toml::to_string(disk).map(DeviceTable::Disk),
            Self::Nic(nic) => toml::to_string(nic).map(DeviceTable::Nic),
        }
        .map_err(failed)
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Disk(disk) => &disk.name,
            Self::Nic(nic) => &nic.name,
        }
    }
}

impl VmConfig {
    /// Returns the names of all devices.
    pub fn device_names(&self) -> impl Iterator<Item = &str> {
        let disks = self.disks.iter().map(|disk| &*disk.name);
        disks.chain(self.nics.iter().map(|nic| &*nic.name))
    }

    /// Returns the configuration with one more device, and the device, which has a name then.
    ///
    /// # Errors
    ///
    /// The device does not go with the others.
    pub fn with_device(&self, device: DeviceConfig) -> Result<(Self, DeviceConfig), ConfigError> {
        let mut config = self.clone();
        let is_disk = matches!(device, DeviceConfig::Disk(_));
        match device {
            DeviceConfig::Disk(disk) => config.disks.push(disk),
            DeviceConfig::Nic(nic) => config.nics.push(nic),
        }
        let config = Self::parse("configuration", &config.to_toml()?)?;
        let device = match is_disk {
            true => config.disks.last().cloned().map(DeviceConfig::Disk),
            false => config.nics.last().cloned().map(DeviceConfig::Nic),
        };
        let device = device.ok_or_else(|| ConfigError("the device is missing".to_owned()))?;
        Ok((config, device))
    }

    /// Returns the configuration with those devices alone whose names `keeps` wants.
    #[must_use]
    pub fn with_devices(&self, keeps: impl Fn(&str) -> bool) -> Self {
        let mut config = self.clone();
        config.disks.retain(|disk| keeps(&disk.name));
        config.nics.retain(|nic| keeps(&nic.name));
        config
    }

    /// Returns the configuration after a setting `nic.NIC.link=up` or `=down`, where NIC is a number or a
    /// name, and the card that has changed.
    ///
    /// # Errors
    ///
    /// There is no such card, or the setting is another one.
    pub fn with_setting(&self, setting: &str) -> Result<(Self, NicConfig), ConfigError> {
        let wrong = |what: String| ConfigError(format!("{}: {what}", setting.escape_default()));
        let form = || wrong("expected nic.NIC.link=up or nic.NIC.link=down".to_owned());
        let (key, value) = setting.split_once('=').ok_or_else(form)?;
        let name = key
            .strip_prefix("nic.")
            .and_then(|rest| rest.strip_suffix(".link"));
        let name = name.ok_or_else(form)?;
        let link = match value {
            "up" => LinkState::Up,
            "down" => LinkState::Down,
            _ => return Err(form()),
        };
        let mut config = self.clone();
        let index = config.nics.iter().position(|nic| nic.name == name);
        let index = index.or_else(|| name.parse().ok());
        let nic = index.and_then(|index| config.nics.get_mut(index));
        let nic = nic.ok_or_else(|| wrong(format!("{} has no such NIC", self.name)))?;
        nic.link = link;
        let nic = nic.clone();
        Ok((config, nic))
    }
}
